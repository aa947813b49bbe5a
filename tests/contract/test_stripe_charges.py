"""The Charges adapter: the codes and keys of stripe-stateful-mock, and a provider that lies."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from service.providers.base import Charge, Outcome, OutcomeKind, Stage
from service.providers.http.transport import Transport
from service.providers.stripe.charges import StripeChargesProvider
from service.resilience.deadline import Deadline
from service.resilience.watchdog import Watchdog
from tests.support.processes.fault_server import Peer, answer, certificate, fault_server
from tests.support.providers.provider_rigs import Localstripe, StripeMock

pytestmark = pytest.mark.needs("stripe-mock")


def soon() -> Deadline:
    return Deadline.after(60)


@pytest.fixture
def provider(stripe_mock: StripeMock) -> Iterator[Any]:
    with stripe_mock.provider() as provider:
        yield provider


def in_turn(stripe_mock: StripeMock, *tokens: str) -> Charge:
    """A charge with these tokens for its calls, in turn; the last word makes it unique."""
    charge = stripe_mock.a_charge()
    return replace(charge, payment_method="|".join([*tokens, charge.payment_id]))


# --- The behaviour of stripe-stateful-mock ------------------------------------------------------


@pytest.mark.parametrize(
    ("token", "code"),
    [
        ("tok_chargeDeclined", "generic_decline"),
        ("tok_chargeDeclinedInsufficientFunds", "insufficient_funds"),
        ("tok_chargeDeclinedFraudulent", "fraudulent"),
        ("tok_chargeDeclinedExpiredCard", "expired_card"),
        ("tok_chargeDeclinedIncorrectCvc", "incorrect_cvc"),
        ("tok_chargeDeclinedProcessingError", "processing_error"),
    ],
)
def test_a_decline_brings_the_real_code_and_the_reference(stripe_mock, provider, token, code):
    charge = stripe_mock.a_charge(token)

    outcome = provider.confirm(charge, soon())

    assert (outcome.kind, outcome.decline.code) == (OutcomeKind.DECLINED, code)
    assert outcome.provider_ref.startswith("ch_")
    found = provider.look_up(replace(charge, provider_ref=outcome.provider_ref), soon())
    assert (found.kind, found.provider_ref) == (OutcomeKind.DECLINED, outcome.provider_ref)


def test_its_429_was_not_executed_and_the_same_key_is_good_again(stripe_mock, provider):
    charge = in_turn(stripe_mock, "tok_429", "tok_visa")

    refused = provider.confirm(charge, soon())
    paid = provider.confirm(charge, soon())

    assert (refused.kind, refused.error) == (OutcomeKind.NOT_EXECUTED, "http_429")
    assert paid.kind is OutcomeKind.SUCCEEDED
    assert stripe_mock.taken(charge) == [2599]


def test_its_saved_500_is_no_proof_and_only_the_next_key_charges(stripe_mock, provider):
    charge = in_turn(stripe_mock, "tok_500", "tok_visa")

    doubt = provider.confirm(charge, soon())
    replayed = provider.confirm(charge, soon())
    proof = provider.look_up(charge, soon())
    paid = provider.confirm(replace(charge, provider_key=f"{charge.provider_key}2"), soon())

    assert [doubt.kind, replayed.kind] == [OutcomeKind.UNKNOWN] * 2
    assert (proof.kind, proof.stage) == (OutcomeKind.NOT_EXECUTED, Stage.ANSWERED)
    assert paid.kind is OutcomeKind.SUCCEEDED
    assert stripe_mock.taken(charge) == [2599]


@pytest.mark.parametrize("fault", ["reset", "reset_after"])
def test_the_same_key_completes_the_call_in_doubt(stripe_mock, provider, fault):
    charge = stripe_mock.a_charge()
    with stripe_mock.front.failing(fault):
        provider.confirm(charge, soon())

    outcome = provider.look_up(replace(charge, may_send_again=True), soon())

    assert outcome.kind is OutcomeKind.SUCCEEDED
    assert stripe_mock.taken(charge) == [2599]


def test_made_charge_is_not_repeated_under_another_key(stripe_mock, provider):
    charge = stripe_mock.a_charge()
    made = replace(charge, provider_ref=provider.confirm(charge, soon()).provider_ref)

    again = provider.confirm(replace(made, provider_key=f"{charge.provider_key}2"), soon())

    assert (again.kind, again.provider_ref) == (OutcomeKind.SUCCEEDED, made.provider_ref)
    assert stripe_mock.taken(charge) == [2599]


# --- A provider that ignores keys ----------------------------------------------------------------


def test_the_books_are_read_before_the_same_key_is_sent_again(localstripe: Localstripe):
    # This provider ignores keys: a repeat is charged again.
    one_shot = replace(localstripe, flow="one_shot")
    charge = one_shot.a_charge(may_send_again=True)

    with one_shot.provider() as provider:
        with one_shot.front.failing("reset_after"):
            doubt = provider.confirm(charge, soon())
        provider.look_up(charge, soon())

    assert doubt.kind is OutcomeKind.UNKNOWN
    assert one_shot.taken(charge) == [2599]


# --- False answers --------------------------------------------------------------------------------

CHARGE = Charge(
    payment_id="pay_1",
    merchant_id="merchant-1",
    amount_minor=9,
    currency="usd",
    payment_method="tok_visa",
    provider_key="hf-1-1",
    provider_ref="ch_1",
    created_at=datetime.now(UTC),
)
SAID: dict[str, Any] = {
    "id": "ch_1",
    "object": "charge",
    "status": "succeeded",
    "amount": 9,
    "amount_captured": 9,
    "amount_refunded": 0,
    "captured": True,
    "refunded": False,
    "currency": "usd",
    "created": 1_700_000_000,
    "payment_intent": None,
    "metadata": {"payment_id": "pay_1", "merchant_id": "merchant-1"},
}


@contextlib.contextmanager
def charges_that_say(content: Callable[[str], Any]) -> Iterator[StripeChargesProvider]:
    """A provider that answers each request with the result of `content` for its request line:
    402 for an error, else 200."""

    def behave(peer: Peer) -> None:
        while request := peer.read_request():
            said = content(request.split(b"\r\n")[0].decode())
            status = 402 if "error" in said else 200
            peer.send(answer(status, json.dumps(said).encode()))

    with fault_server(behave) as server:
        transport = Transport(
            base_url=server.url,
            ca_file=certificate(),
            connect_timeout_s=2.0,
            max_connections=2,
            watchdog=Watchdog(),
        )
        try:
            yield StripeChargesProvider(transport, api_key="sk_test_lies")
        finally:
            transport.close()


def looked_up(content: Any, charge: Charge = CHARGE) -> Outcome:
    with charges_that_say(lambda _: content) as provider:
        return provider.look_up(charge, soon())


@pytest.mark.parametrize(
    "lie",
    [
        {"object": "payment_intent"},
        {"id": "ch_2"},
        {"id": "../refunds"},
        {"amount": 9.0},
        {"amount": 10},
        {"currency": "eur"},
        {"metadata": {"payment_id": "pay_2"}},
        {"metadata": []},
        {"status": "paid"},
        {"status": None},
        {"captured": None},
        {"captured": 1},
        {"amount_captured": None},
        {"amount_captured": 10},
        {"amount_captured": True},
        {"captured": False, "refunded": None},
        {"captured": False, "amount_refunded": 3},
    ],
    ids=json.dumps,
)
def test_a_lie_about_a_charge_is_doubt(lie):
    outcome = looked_up(SAID | lie)

    assert (outcome.kind, outcome.error) == (OutcomeKind.UNKNOWN, "mismatch")


@pytest.mark.parametrize(
    ("state", "kind", "error"),
    [
        ({}, OutcomeKind.SUCCEEDED, None),
        ({"refunded": True, "amount_refunded": 9}, OutcomeKind.SUCCEEDED, None),
        ({"captured": False, "amount_captured": 0}, OutcomeKind.SUCCEEDED, None),
        (
            {"captured": False, "refunded": True, "amount_refunded": 9},
            OutcomeKind.NOT_EXECUTED,
            "canceled",
        ),
        ({"status": "pending", "captured": False}, OutcomeKind.PENDING, None),
        ({"status": "failed"}, OutcomeKind.DECLINED, None),
    ],
)
def test_the_states_of_a_charge(state, kind, error):
    outcome = looked_up(SAID | state)

    assert (outcome.kind, outcome.error, outcome.stage) == (kind, error, Stage.ANSWERED)


def test_a_capture_of_another_amount_than_asked_is_doubt():
    with charges_that_say(lambda _: SAID) as provider:
        outcome = provider.capture(CHARGE, 5, "key", soon())

    assert (outcome.kind, outcome.error) == (OutcomeKind.UNKNOWN, "mismatch")


RELEASE: dict[str, Any] = {
    "id": "re_1",
    "object": "refund",
    "status": "succeeded",
    "charge": "ch_1",
    "amount": 9,
    "currency": "usd",
}


@pytest.mark.parametrize(
    "lie",
    [{"charge": "ch_2"}, {"amount": 8}, {"currency": "eur"}, {"status": "pending"}],
    ids=json.dumps,
)
def test_a_release_of_something_else_is_doubt(lie):
    reserved = SAID | {"captured": False, "amount_captured": 0}

    with charges_that_say(
        lambda line: RELEASE | lie if "refunds" in line else reserved
    ) as provider:
        outcome = provider.cancel(CHARGE, "key", soon())

    assert (outcome.kind, outcome.error) == (OutcomeKind.UNKNOWN, "mismatch")


def test_release_answered_with_a_decline_released_nothing():
    reserved = SAID | {"captured": False, "amount_captured": 0}
    refused = {"error": {"type": "card_error", "code": "card_declined", "message": "No."}}

    with charges_that_say(lambda line: refused if "POST" in line else reserved) as provider:
        outcome = provider.cancel(CHARGE, "key", soon())

    assert (outcome.kind, outcome.error) == (OutcomeKind.UNKNOWN, "mismatch")


def test_charges_of_payment_intents_are_not_second_charges():
    of_intent = SAID | {"id": "ch_2", "payment_intent": "pi_1"}
    page = {"object": "list", "data": [of_intent, SAID], "has_more": False}

    with charges_that_say(lambda _: page) as provider:
        listed = [charge.provider_ref for charge in provider.list_since(datetime.now(UTC), soon())]

    assert listed == ["ch_1"]
