"""The Stripe adapter against the real sandbox process: the outcome of each answer and each fault."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from time import monotonic
from typing import Any
from uuid import uuid4

import pytest

from service.errors import ProviderUnavailable
from service.providers.base import Charge, Outcome, OutcomeKind, Refund, Stage
from service.providers.http.transport import Transport
from service.providers.stripe.intents_adapter import StripeProvider
from service.resilience.deadline import Deadline
from service.resilience.watchdog import Watchdog
from tests.support.processes.sandbox_process import SandboxProcess


@contextlib.contextmanager
def stripe(
    sandbox: SandboxProcess, *, flow: Any = "two_phase", api_key: str = "sk_test_contract"
) -> Iterator[StripeProvider]:
    transport = Transport(
        base_url=sandbox.url,
        ca_file=sandbox.ca_file,
        connect_timeout_s=2.0,
        max_connections=4,
        watchdog=Watchdog(),
    )
    try:
        yield StripeProvider(transport, api_key=api_key, flow=flow)
    finally:
        transport.close()


@pytest.fixture
def provider(sandbox: SandboxProcess) -> Iterator[StripeProvider]:
    with stripe(sandbox) as provider:
        yield provider


@pytest.fixture
def one_shot(sandbox: SandboxProcess) -> Iterator[StripeProvider]:
    with stripe(sandbox, flow="one_shot") as provider:
        yield provider


def a_charge(method: str = "pm_card_visa", **more: Any) -> Charge:
    name = f"pay_{uuid4().hex}"
    fields: dict[str, Any] = {
        "payment_id": name,
        "merchant_id": "merchant-1",
        "amount_minor": 2599,
        "currency": "usd",
        "payment_method": method,
        "provider_key": f"hf-{name}-1",
        "reference": f"order-{name}",
        "metadata": {"b": "2", "a": "1"},
        "created_at": datetime.now(UTC),
    }
    return Charge(**{**fields, **more})


def soon(seconds: float = 60.0) -> Deadline:
    return Deadline.after(seconds)


def prepared(provider: StripeProvider, charge: Charge) -> Charge:
    outcome = provider.prepare(charge, soon())
    assert outcome.provider_ref is not None, outcome
    return replace(charge, provider_ref=outcome.provider_ref)


def charged(provider: StripeProvider, charge: Charge) -> Charge:
    ready = prepared(provider, charge)
    assert provider.confirm(ready, soon()).kind is OutcomeKind.SUCCEEDED
    return ready


def movements(sandbox: SandboxProcess, charge: Charge) -> list[tuple[str, int]]:
    found = sandbox.books(payment_id=charge.payment_id)
    return [(movement["kind"], movement["amount"]) for movement in found]


# --- The way of a charge ------------------------------------------------------------------------


def test_preparing_makes_the_charge_known_and_moves_nothing(sandbox, provider):
    charge = a_charge()

    outcome = provider.prepare(charge, soon())

    assert (outcome.kind, outcome.stage) == (OutcomeKind.PENDING, Stage.ANSWERED)
    assert outcome.provider_ref.startswith("pi_")
    assert movements(sandbox, charge) == []


def test_confirming_moves_the_money_once_for_a_key(sandbox, provider):
    charge = prepared(provider, a_charge())

    outcomes = [provider.confirm(charge, soon()) for _ in range(2)]

    assert [outcome.kind for outcome in outcomes] == [OutcomeKind.SUCCEEDED] * 2
    assert outcomes[0].amount_received == 2599
    assert movements(sandbox, charge) == [("charge", 2599)]


def test_a_manual_capture_reserves_first_and_takes_a_part_later(sandbox, provider):
    charge = prepared(provider, a_charge(capture_automatically=False))

    reserved = provider.confirm(charge, soon())
    taken = provider.capture(charge, 1000, f"{charge.provider_key}-capture", soon())

    assert (reserved.kind, reserved.amount_capturable) == (OutcomeKind.SUCCEEDED, 2599)
    assert (taken.kind, taken.amount_received) == (OutcomeKind.SUCCEEDED, 1000)
    assert movements(sandbox, charge) == [("authorize", 2599), ("capture", 1000)]


def test_cancelling_releases_what_was_reserved(sandbox, provider):
    charge = prepared(provider, a_charge(capture_automatically=False))
    provider.confirm(charge, soon())

    outcome = provider.cancel(charge, f"{charge.provider_key}-cancel", soon())

    assert (outcome.kind, outcome.error) == (OutcomeKind.NOT_EXECUTED, "canceled")
    assert movements(sandbox, charge) == [("authorize", 2599), ("void", 2599)]


def test_refused_cancel_of_a_captured_charge_proves_nothing(provider):
    charge = charged(provider, a_charge())

    outcome = provider.cancel(charge, f"{charge.provider_key}-cancel", soon())

    assert (outcome.kind, outcome.error) == (OutcomeKind.UNKNOWN, "http_4xx")


def test_a_declined_card_comes_with_the_providers_own_code(provider):
    charge = prepared(provider, a_charge("pm_card_chargeDeclinedInsufficientFunds"))

    outcome = provider.confirm(charge, soon())

    assert outcome.kind is OutcomeKind.DECLINED
    assert outcome.decline.code == "insufficient_funds"
    assert outcome.provider_ref == charge.provider_ref
    assert provider.look_up(charge, soon()).kind is OutcomeKind.DECLINED


def test_missing_payment_method_is_declined_at_prepare(provider):
    outcome = provider.prepare(a_charge("pm_none"), soon())

    assert outcome.kind is OutcomeKind.DECLINED
    assert outcome.decline.code == "resource_missing"


def test_a_payer_who_must_act_is_told_how(sandbox, provider):
    charge = prepared(provider, a_charge("pm_card_threeDSecure2Required"))

    waiting = provider.confirm(charge, soon())
    sandbox.complete_action(charge.provider_ref)
    done = provider.look_up(charge, soon())

    assert waiting.kind is OutcomeKind.PENDING
    assert waiting.next_action["type"]
    assert done.kind is OutcomeKind.SUCCEEDED


def test_refused_api_key_proves_that_nothing_was_executed(sandbox):
    with stripe(sandbox, api_key="sk_live_wrong") as provider:
        outcome = provider.prepare(a_charge(), soon())

    assert (outcome.kind, outcome.stage) == (OutcomeKind.NOT_EXECUTED, Stage.ANSWERED)
    assert outcome.error == "http_4xx"


# --- Doubt, and how it ends ---------------------------------------------------------------------

DOUBTS = {
    "hang": ("timeout", Stage.SENT_UNKNOWN, []),
    "hang_after_charge": ("timeout", Stage.SENT_UNKNOWN, [("charge", 2599)]),
    "drip": ("timeout", Stage.SENT_UNKNOWN, [("charge", 2599)]),
    "reset": ("reset", Stage.SENT_UNKNOWN, []),
    "reset_after_charge": ("reset", Stage.SENT_UNKNOWN, [("charge", 2599)]),
    "garbage": ("garbage", Stage.SENT_UNKNOWN, [("charge", 2599)]),
    "error_500_saved": ("http_5xx", Stage.ANSWERED, []),
    "error_503": ("http_5xx", Stage.ANSWERED, []),
}


@pytest.mark.parametrize("fault", DOUBTS)
def test_a_fault_while_confirming_is_doubt_and_a_look_up_ends_it(sandbox, provider, fault):
    error, stage, moved = DOUBTS[fault]
    charge = prepared(provider, a_charge())
    sandbox.control(mix={fault: 1}, reference=charge.reference)

    began_s = monotonic()
    doubt = provider.confirm(charge, soon(1.5))
    took_s = monotonic() - began_s
    sandbox.clear()
    settled = provider.look_up(charge, soon())

    assert (doubt.kind, doubt.error, doubt.stage) == (OutcomeKind.UNKNOWN, error, stage)
    # Without the deadline it hangs for a minute.
    assert took_s < 30
    assert settled.kind is (OutcomeKind.SUCCEEDED if moved else OutcomeKind.NOT_EXECUTED)
    assert settled.stage is Stage.ANSWERED
    assert movements(sandbox, charge) == moved


def test_too_many_calls_prove_that_this_one_was_not_executed(sandbox, provider):
    charge = prepared(provider, a_charge())
    sandbox.control(mix={"error_429": 1}, reference=charge.reference)

    outcome = provider.confirm(charge, soon())

    assert (outcome.kind, outcome.error) == (OutcomeKind.NOT_EXECUTED, "http_429")


@pytest.mark.parametrize("fault", ["error_429", "error_503", "reset", "hang", "garbage"])
def test_a_look_up_that_fails_proves_nothing(sandbox, provider, fault):
    charge = charged(provider, a_charge())
    sandbox.control(mix={fault: 1}, operations=["retrieve"])

    assert provider.look_up(charge, soon(0.4)).kind is OutcomeKind.UNKNOWN


def test_a_look_up_for_which_there_is_no_time_proves_nothing(provider):
    charge = charged(provider, a_charge())

    outcome = provider.look_up(charge, soon(0))

    assert (outcome.kind, outcome.stage) == (OutcomeKind.UNKNOWN, Stage.NOT_SENT)


def test_charge_of_another_account_is_doubt_not_absence(sandbox, provider):
    charge = charged(provider, a_charge())

    with stripe(sandbox, api_key="sk_live_other") as stranger:
        outcome = stranger.look_up(charge, soon())

    assert outcome.kind is OutcomeKind.UNKNOWN


def test_second_confirm_with_the_next_key_is_doubt(sandbox, provider):
    charge = charged(provider, a_charge())

    outcome = provider.confirm(replace(charge, provider_key=f"{charge.provider_key}9"), soon())

    assert (outcome.kind, outcome.error) == (OutcomeKind.UNKNOWN, "http_4xx")
    assert movements(sandbox, charge) == [("charge", 2599)]


def test_a_prepare_that_failed_may_be_repeated_freely(sandbox, provider):
    charge = a_charge()
    sandbox.control(mix={"error_500_saved": 1}, reference=charge.reference)
    failed = provider.prepare(charge, soon())
    sandbox.clear()

    replayed = provider.prepare(charge, soon())
    next_series = replace(charge, provider_key=f"{charge.provider_key}2")

    assert (failed.kind, replayed.kind) == (OutcomeKind.UNKNOWN, OutcomeKind.UNKNOWN)
    assert (failed.is_replay, replayed.is_replay) == (False, True)
    assert provider.prepare(next_series, soon()).kind is OutcomeKind.PENDING
    assert movements(sandbox, charge) == []


@pytest.mark.parametrize("field", ["payment_id", "amount_minor", "currency"])
def test_an_answer_about_something_else_is_a_mismatch(provider, field):
    charge = charged(provider, a_charge())
    lie: dict[str, Any] = {"payment_id": "pay_other", "amount_minor": 2600, "currency": "eur"}

    outcome = provider.look_up(replace(charge, **{field: lie[field]}), soon())

    assert (outcome.kind, outcome.error) == (OutcomeKind.UNKNOWN, "mismatch")


# --- One call -----------------------------------------------------------------------------------


def test_in_one_shot_one_call_charges(sandbox, one_shot):
    charge = a_charge()

    nothing = one_shot.prepare(charge, soon())
    outcome = one_shot.confirm(charge, soon())

    assert (nothing.kind, nothing.stage) == (OutcomeKind.PENDING, Stage.NOT_SENT)
    assert outcome.kind is OutcomeKind.SUCCEEDED
    assert outcome.provider_ref.startswith("pi_")
    assert movements(sandbox, charge) == [("charge", 2599)]


@pytest.mark.parametrize("fault", ["reset_after_charge", "hang_after_charge", "reset"])
def test_in_one_shot_the_same_key_completes_the_attempt_in_doubt(sandbox, one_shot, fault):
    charge = a_charge()
    sandbox.control(mix={fault: 1}, reference=charge.reference)
    doubt = one_shot.confirm(charge, soon(1.5))
    sandbox.clear()

    settled = one_shot.look_up(replace(charge, may_send_again=True), soon())

    assert doubt.kind is OutcomeKind.UNKNOWN
    assert settled.kind is OutcomeKind.SUCCEEDED
    assert movements(sandbox, charge) == [("charge", 2599)]


def test_in_one_shot_a_saved_500_is_settled_by_the_books(sandbox, one_shot):
    charge = a_charge()
    sandbox.control(mix={"error_500_saved": 1}, reference=charge.reference)
    one_shot.confirm(charge, soon())
    sandbox.clear()

    settled = one_shot.look_up(charge, soon())

    assert (settled.kind, settled.stage) == (OutcomeKind.NOT_EXECUTED, Stage.ANSWERED)
    assert movements(sandbox, charge) == []


def test_in_one_shot_an_old_key_is_not_used_again(sandbox, one_shot):
    old = a_charge(created_at=datetime.now(UTC) - timedelta(hours=21))
    charged_before = a_charge(created_at=datetime.now(UTC) - timedelta(hours=21))
    one_shot.confirm(charged_before, soon())

    assert one_shot.look_up(old, soon()).kind is OutcomeKind.NOT_EXECUTED
    assert one_shot.look_up(charged_before, soon()).kind is OutcomeKind.SUCCEEDED
    assert movements(sandbox, old) == []


def test_in_one_shot_a_declined_card_is_declined(one_shot):
    outcome = one_shot.confirm(a_charge("pm_card_chargeDeclined"), soon())

    assert outcome.kind is OutcomeKind.DECLINED
    assert outcome.provider_ref.startswith("pi_")


# --- Refunds ------------------------------------------------------------------------------------


def a_refund(charge: Charge, amount_minor: int = 599, **more: Any) -> Refund:
    name = f"ref_{uuid4().hex}"
    return Refund(
        refund_id=name,
        payment_id=charge.payment_id,
        provider_ref=str(charge.provider_ref),
        amount_minor=amount_minor,
        currency=charge.currency,
        provider_key=f"hf-{charge.payment_id}-{name}",
        **more,
    )


def test_a_refund_gives_the_money_back_once_for_a_key(sandbox, provider):
    charge = charged(provider, a_charge())
    refund = a_refund(charge, reason="the wrong colour")

    outcomes = [provider.refund(refund, soon()) for _ in range(2)]

    assert [outcome.kind for outcome in outcomes] == [OutcomeKind.SUCCEEDED] * 2
    assert provider.look_up_refund(refund, soon()).provider_ref == outcomes[0].provider_ref
    assert movements(sandbox, charge) == [("charge", 2599), ("refund", 599)]


def test_a_refund_of_more_than_is_left_is_refused_for_good(provider):
    charge = charged(provider, a_charge())

    outcome = provider.refund(a_refund(charge, 2600), soon())

    assert outcome.kind is OutcomeKind.DECLINED


def test_already_refunded_by_ourselves_is_a_success(sandbox, provider):
    charge = charged(provider, a_charge())
    refund = a_refund(charge, 2599)
    sandbox.control(mix={"reset_after_charge": 1}, reference=charge.reference)
    doubt = provider.refund(refund, soon())
    sandbox.control(mix={"ok": 1}, reference=charge.reference, honour_keys=False)

    again = provider.refund(refund, soon())

    assert doubt.kind is OutcomeKind.UNKNOWN
    assert again.kind is OutcomeKind.SUCCEEDED
    assert movements(sandbox, charge) == [("charge", 2599), ("refund", 2599)]


def test_a_refund_that_never_arrived_is_proven_absent(sandbox, provider):
    charge = charged(provider, a_charge())
    refund = a_refund(charge)
    sandbox.control(mix={"reset": 1}, reference=charge.reference)
    doubt = provider.refund(refund, soon())
    sandbox.clear()

    settled = provider.look_up_refund(refund, soon())

    assert doubt.kind is OutcomeKind.UNKNOWN
    assert (settled.kind, settled.stage) == (OutcomeKind.NOT_EXECUTED, Stage.ANSWERED)


def test_a_pending_refund_is_pending(provider):
    charge = charged(provider, a_charge("pm_card_pendingRefund"))

    assert provider.refund(a_refund(charge), soon()).kind is OutcomeKind.PENDING


# --- The books ----------------------------------------------------------------------------------


def test_the_books_list_every_charge_over_all_pages(provider, monkeypatch):
    monkeypatch.setattr("service.providers.stripe.api.PAGE_SIZES", (2,))
    began = datetime.now(UTC) - timedelta(seconds=2)
    made = [charged(provider, a_charge()) for _ in range(5)]

    listed = {found.payment_id: found for found in provider.list_since(began, soon())}

    for charge in made:
        found = listed[charge.payment_id]
        assert (found.provider_ref, found.merchant_id) == (charge.provider_ref, "merchant-1")
        assert (found.amount_minor, found.outcome.kind) == (2599, OutcomeKind.SUCCEEDED)


def test_books_that_cannot_be_read_are_not_taken_for_empty(sandbox, provider):
    sandbox.control(mix={"error_503": 1}, operations=["list"])

    with pytest.raises(ProviderUnavailable):
        list(provider.list_since(datetime.now(UTC), soon()))


# --- What the log says --------------------------------------------------------------------------


def events(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    return [vars(record) | {"event": record.getMessage()} for record in caplog.records]


def confirm_with(sandbox: SandboxProcess, provider: StripeProvider, fault: str) -> Outcome:
    charge = prepared(provider, a_charge())
    sandbox.control(mix={fault: 1}, reference=charge.reference)
    return provider.confirm(charge, soon(1))


def test_a_timeout_is_logged_in_the_words_of_the_incident(sandbox, provider, caplog):
    with caplog.at_level(logging.ERROR):
        outcome = confirm_with(sandbox, provider, "hang")

    event = events(caplog)[-1]
    assert event["event"] == "provider.timeout"
    assert event["incident"] == "Payment service connection failed - timeout after 1000ms"
    assert event["error_class"] == "requests.exceptions.ReadTimeout"
    assert "Read timed out. (read timeout=1)" in event["error_chain"][0]
    assert outcome.error_detail in event["error_chain"][0]


def test_lost_connection_is_logged_with_the_incidents_text(sandbox, provider, caplog):
    with caplog.at_level(logging.ERROR):
        confirm_with(sandbox, provider, "reset")

    event = events(caplog)[-1]
    assert event["event"] == "provider.connection_error"
    words = "... in process_payment: ConnectionError: HTTPSConnectionPool timeout"
    assert event["incident"] == words
    assert event["error_chain"][0].endswith("ConnectionError: HTTPSConnectionPool timeout")
    assert event["error_chain"][1].startswith("requests.exceptions.ConnectionError: ")


def test_the_providers_key_is_in_no_event(sandbox, caplog):
    with caplog.at_level(logging.DEBUG), stripe(sandbox, api_key="sk_test_canary") as provider:
        for fault in ("reset", "hang", "garbage", "error_503"):
            confirm_with(sandbox, provider, fault)

    assert events(caplog)
    assert "canary" not in repr(events(caplog))
