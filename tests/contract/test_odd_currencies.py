"""Currencies with other minor units at Stripe than in ISO 4217, checked with the sandbox's table."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from service.lab.sandbox import currencies
from service.providers.base import Charge, OutcomeKind, Provider, Refund, Stage
from service.providers.stripe.currencies import STRIPE_AMOUNTS
from service.resilience.deadline import Deadline
from tests.support.processes.sandbox_process import SandboxProcess
from tests.support.processes.tls_front import TlsFront
from tests.support.providers.provider_rigs import Sandbox

# currency, our amount, Stripe's; a part of ours, Stripe's.
ODD = [
    ("isk", 2600, 260_000, 1100, 110_000),
    ("ugx", 5001, 500_100, 2, 200),
    ("mga", 260_000, 2600, 10_100, 101),
    ("kwd", 5120, 5120, 1130, 1130),
    ("tnd", 10, 10, 10, 10),
    ("jpy", 2600, 2600, 51, 51),
    ("huf", 17_550, 17_550, 33, 33),
    ("usd", 2599, 2599, 1, 1),
]


@pytest.fixture
def rig(sandbox: SandboxProcess, sandbox_front: TlsFront) -> Sandbox:
    rig = Sandbox(sandbox_front, sandbox.url)
    rig.sandbox = sandbox
    return rig


@pytest.fixture
def provider(rig: Sandbox) -> Iterator[Provider]:
    with rig.provider() as provider:
        yield provider


def soon() -> Deadline:
    return Deadline.after(60)


def authorised(provider: Provider, charge: Charge) -> Charge:
    prepared = provider.prepare(charge, soon())
    charge = replace(charge, provider_ref=prepared.provider_ref)
    assert provider.confirm(charge, soon()).amount_capturable == charge.amount_minor
    return charge


@pytest.mark.parametrize(("currency", "ours", "stripes", "part", "stripes_part"), ODD)
def test_an_odd_currency_is_charged_captured_and_refunded(
    rig, provider, currency, ours, stripes, part, stripes_part
):
    charge = rig.a_charge(currency=currency, amount_minor=ours, capture_automatically=False)
    charge = authorised(provider, charge)

    captured = provider.capture(charge, part, f"{charge.provider_key}-c", soon())
    refund = Refund("ref_1", charge.payment_id, str(charge.provider_ref), part, currency, "r")
    refunded = provider.refund(replace(refund, provider_key=f"{charge.provider_key}-r"), soon())

    assert (captured.kind, captured.amount_received) == (OutcomeKind.SUCCEEDED, part)
    assert refunded.kind is OutcomeKind.SUCCEEDED
    moved = rig.sandbox.books(payment_id=charge.payment_id)
    assert [(one["kind"], one["amount"]) for one in moved] == [
        ("authorize", stripes),
        ("capture", stripes_part),
        ("refund", stripes_part),
    ]


@pytest.mark.parametrize(("currency", "ours", "_stripes", "_part", "_stripes_part"), ODD)
def test_look_up_and_list_speak_iso_4217(
    rig, provider, currency, ours, _stripes, _part, _stripes_part
):
    charge = authorised(
        provider,
        rig.a_charge(currency=currency, amount_minor=ours, capture_automatically=False),
    )

    found = provider.look_up(replace(charge, provider_ref=None), soon())
    since = datetime.now(UTC) - timedelta(minutes=5)
    listed = [
        one for one in provider.list_since(since, soon()) if one.payment_id == charge.payment_id
    ]

    assert found.amount_capturable == ours
    assert [(one.amount_minor, one.outcome.amount_capturable) for one in listed] == [(ours, ours)]


@pytest.mark.parametrize(("currency", "amount"), [("kwd", 5124), ("mga", 260_001)])
def test_what_cannot_be_said_is_not_sent(rig, provider, currency, amount):
    charge = rig.a_charge(currency=currency, amount_minor=amount)

    outcome = provider.prepare(charge, soon())

    assert (outcome.kind, outcome.stage) == (OutcomeKind.DECLINED, Stage.NOT_SENT)
    assert outcome.decline is not None
    assert outcome.decline.is_request


def test_both_tables_take_the_same_currencies():
    ours = set(STRIPE_AMOUNTS.units or {})

    # Withdrawn from ISO 4217, and still listed by Stripe.
    assert currencies.SUPPORTED - ours == {"ang", "bgn", "std"}
    assert ours <= currencies.SUPPORTED


@pytest.mark.parametrize(
    ("amount", "currency", "code"),
    [
        ("500", "xyz", None),
        ("50050", "isk", "parameter_invalid_integer"),
        ("5124", "kwd", "parameter_invalid_integer"),
        ("49", "usd", "amount_too_small"),
        ("100000000", "usd", "amount_too_large"),
    ],
)
def test_the_sandbox_refuses_as_stripe_does(sandbox, amount, currency, code):
    answer = sandbox.stripe("POST", "/payment_intents", amount=amount, currency=currency)

    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert answer.json()["error"].get("code") == code


@pytest.mark.parametrize("bound", ["least", "most"])
def test_the_sandbox_takes_every_bound_of_ours(rig, provider, bound):
    for currency in ("usd", "isk", "ugx", "mga", "kwd", "idr", "jpy", "huf", "inr", "lbp", "czk"):
        units = (STRIPE_AMOUNTS.units or {})[currency]
        charge = rig.a_charge(currency=currency, amount_minor=getattr(units, bound))

        assert provider.prepare(charge, soon()).kind is OutcomeKind.PENDING, currency
