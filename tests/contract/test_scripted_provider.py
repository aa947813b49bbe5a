"""The scripted provider does exactly the acts of its script."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from uuid import uuid4

import pytest

from service.providers.base import Charge, OutcomeKind, Refund
from service.resilience.deadline import Deadline
from tests.support.providers.scripted_books import Rule
from tests.support.providers.scripted_provider import ScriptedProvider, scripted_provider


@pytest.fixture(scope="module")
def running() -> Iterator[ScriptedProvider]:
    with scripted_provider() as provider:
        yield provider


@pytest.fixture
def scripted(running: ScriptedProvider) -> ScriptedProvider:
    running.clear(books=True)
    return running


def a_charge() -> Charge:
    name = f"pay_{uuid4().hex}"
    return Charge(
        payment_id=name,
        merchant_id="merchant-1",
        amount_minor=2599,
        currency="usd",
        payment_method="pm_card_visa",
        provider_key=f"hf-{name}-1",
        created_at=datetime.now(UTC),
    )


def soon() -> Deadline:
    return Deadline.after(60)


@pytest.mark.parametrize("flow", ["two_phase", "one_shot"])
def test_an_unscripted_provider_is_honest(scripted, flow):
    charge = a_charge()
    with scripted.adapter(flow=flow) as provider:
        prepared = provider.prepare(charge, soon())
        outcome = provider.confirm(replace(charge, provider_ref=prepared.provider_ref), soon())
        listed = list(provider.list_since(datetime.fromtimestamp(0, UTC), soon()))

    assert outcome.kind is OutcomeKind.SUCCEEDED
    assert [one.payment_id for one in listed] == [charge.payment_id]
    assert [one["kind"] for one in scripted.movements(charge.payment_id)] == ["charge"]


def test_an_unscripted_provider_of_charges_is_honest(scripted):
    charge = replace(a_charge(), capture_automatically=False)
    with scripted.adapter("stripe_charges", flow="one_shot") as provider:
        reserved = provider.confirm(charge, soon())
        made = replace(charge, provider_ref=reserved.provider_ref)
        captured = provider.capture(made, 500, "key-capture", soon())

    assert (reserved.amount_capturable, captured.amount_received) == (2599, 500)


def test_a_saved_failure_is_executed_later_and_replayed(scripted):
    charge = a_charge()
    scripted.script(Rule("create_confirmed", status=500, execute="later", save=True))
    with scripted.adapter(flow="one_shot") as provider:
        first = provider.confirm(charge, soon())
        assert scripted.movements() == []
        assert scripted.execute_held() == 1
        again = provider.confirm(charge, soon())

    assert (first.error, again.error) == ("http_5xx", "http_5xx")
    assert len(scripted.movements(charge.payment_id, "charge")) == 1
    assert len(scripted.requests("create_confirmed")) == 2


def test_a_failure_of_a_gateway_is_neither_executed_nor_kept(scripted):
    charge = a_charge()
    scripted.script(Rule("create_confirmed", status=504, execute="never", body="<html>"))
    with scripted.adapter(flow="one_shot") as provider:
        first, again = provider.confirm(charge, soon()), provider.confirm(charge, soon())

    assert (first.error, again.kind) == ("http_5xx", OutcomeKind.SUCCEEDED)


def test_money_can_move_at_prepare(scripted):
    charge = a_charge()
    scripted.script(Rule("create", as_confirmed=True))
    with scripted.adapter() as provider:
        outcome = provider.prepare(charge, soon())

    assert outcome.error == "mismatch"
    assert len(scripted.movements(charge.payment_id, "charge")) == 1


def test_others_change_the_books(scripted):
    charge = a_charge()
    with scripted.adapter() as provider:
        made = replace(charge, provider_ref=provider.prepare(charge, soon()).provider_ref)
        provider.confirm(made, soon())
        scripted.change(
            made.provider_ref,
            event="payment_intent.canceled",
            status="canceled",
            amount_received=0,
        )
        changed = provider.look_up(made, soon())

    assert changed.error == "canceled"
    assert [event["type"] for event in scripted.objects("events")] == ["payment_intent.canceled"]


def test_a_refund_of_the_dashboard_counts(scripted):
    charge = a_charge()
    with scripted.adapter() as provider:
        made = replace(charge, provider_ref=provider.prepare(charge, soon()).provider_ref)
        provider.confirm(made, soon())
        scripted.refund(made.provider_ref, 2000)
        ours = Refund("ref_1", charge.payment_id, made.provider_ref, 600, "usd", "key-refund")
        refused = provider.refund(ours, soon())
        taken = provider.refund(replace(ours, amount_minor=599, provider_key="key-2"), soon())

    assert (refused.kind, taken.kind) == (OutcomeKind.DECLINED, OutcomeKind.SUCCEEDED)


def test_any_body_goes_out_as_written(scripted):
    scripted.script(Rule("create", body='{"amount": NaN, "id": "\\ud800"'))
    with scripted.adapter() as provider:
        assert provider.prepare(a_charge(), soon()).error == "garbage"
