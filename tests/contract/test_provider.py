"""The promises of every adapter: one suite that runs against each provider.

`rig` is one provider after another (conftest.py), reached over TLS and through the same faults;
`taken` and `given_back` read the provider's own books, past the adapter.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest

from service.errors import Busy
from service.providers.base import Charge, Outcome, OutcomeKind, Provider, Refund, Stage
from service.resilience.deadline import Deadline
from tests.support.stack.running_stack import free_port

# Faults, and whether the provider executes the call before it is lost.
DOUBTS = {
    "hang": False,
    "hang_after": True,
    "reset": False,
    "reset_after": True,
    "truncate_after": True,
    "garbage_after": True,
    "error_500_after": True,
    "error_503": False,
}
# Faults of a look-up, besides the silence that one test waits for.
UNANSWERED = ("reset", "truncate_after", "garbage_after", "error_503", "error_429")
HANG_S = 2.0


def soon(seconds: float = 60.0) -> Deadline:
    return Deadline.after(seconds)


def patience(fault: str) -> Deadline:
    """A short deadline where no answer will arrive."""
    return soon(HANG_S if fault.startswith("hang") else 10.0)


def ready(provider: Provider, charge: Charge) -> Charge:
    """Prepare the charge like the handler: with the reference if the provider gave one."""
    prepared = provider.prepare(charge, soon())
    assert prepared.kind is OutcomeKind.PENDING, prepared
    return replace(charge, provider_ref=prepared.provider_ref)


def confirmed(provider: Provider, charge: Charge) -> tuple[Charge, Outcome]:
    charge = ready(provider, charge)
    outcome = provider.confirm(charge, soon())
    return replace(charge, provider_ref=outcome.provider_ref or charge.provider_ref), outcome


def settled(provider: Provider, charge: Charge) -> Outcome:
    """End a doubt like the reconciler: look up, and send again only with proof of absence."""
    for series in range(2, 5):
        outcome = provider.look_up(charge, soon())
        if outcome.kind is not OutcomeKind.NOT_EXECUTED:
            return outcome
        assert outcome.stage is Stage.ANSWERED, outcome
        charge = replace(charge, provider_key=f"{charge.provider_key[:-1]}{series}")
        provider.confirm(charge, soon())
    raise AssertionError(f"not settled: {outcome}")


def a_refund(charge: Charge, amount_minor: int = 599) -> Refund:
    name = f"ref_{uuid4().hex}"
    return Refund(
        refund_id=name,
        payment_id=charge.payment_id,
        provider_ref=str(charge.provider_ref),
        amount_minor=amount_minor,
        currency=charge.currency,
        provider_key=f"hf-{name}-1",
        merchant_id=charge.merchant_id,
    )


# --- The way of a charge ------------------------------------------------------------------------


def test_preparing_moves_nothing(rig, provider):
    charge = rig.a_charge()

    outcome = provider.prepare(charge, soon())

    assert outcome.kind is OutcomeKind.PENDING
    assert (outcome.provider_ref is not None) is provider.two_phase
    assert (outcome.stage is Stage.ANSWERED) is provider.two_phase
    assert rig.taken(charge) == []


def test_confirming_takes_the_money_and_says_so(rig, provider):
    charge, outcome = confirmed(provider, rig.a_charge())

    assert (outcome.kind, outcome.stage) == (OutcomeKind.SUCCEEDED, Stage.ANSWERED)
    assert (outcome.amount_received, outcome.amount_capturable) == (2599, 0)
    assert charge.provider_ref is not None
    assert rig.taken(charge) == [2599]


def test_the_same_confirm_again_takes_nothing_more(rig, provider):
    charge = ready(provider, rig.a_charge())

    outcomes = [provider.confirm(charge, soon()) for _ in range(3)]

    assert outcomes[0].kind is OutcomeKind.SUCCEEDED
    assert all(again.kind is not OutcomeKind.DECLINED for again in outcomes)
    assert all(again.kind is not OutcomeKind.NOT_EXECUTED for again in outcomes)
    assert rig.taken(charge) == [2599]


def test_confirms_at_once_take_the_money_once(rig, provider):
    charge = ready(provider, rig.a_charge())

    with ThreadPoolExecutor(4) as threads:
        outcomes = list(threads.map(lambda _: provider.confirm(charge, soon()), range(4)))

    assert OutcomeKind.SUCCEEDED in {outcome.kind for outcome in outcomes}
    assert rig.taken(charge) == [2599]


def test_a_look_up_agrees_with_the_answer_and_moves_nothing(rig, provider):
    charge, outcome = confirmed(provider, rig.a_charge())

    found = [provider.look_up(charge, soon()) for _ in range(2)]

    for again in found:
        assert (again.kind, again.provider_ref) == (outcome.kind, charge.provider_ref)
        assert again.amount_received == 2599
    assert rig.taken(charge) == [2599]


def test_a_refused_card_is_declined_with_the_providers_code(rig, provider):
    charge, outcome = confirmed(provider, rig.a_charge(rig.refused_card))

    found = provider.look_up(charge, soon())

    assert (outcome.kind, outcome.stage) == (OutcomeKind.DECLINED, Stage.ANSWERED)
    assert outcome.decline.code == rig.decline_code
    assert found.kind is OutcomeKind.DECLINED
    assert rig.taken(charge) == []


# --- Not sent, or certainly not executed --------------------------------------------------------


def test_a_provider_that_is_not_there_was_not_sent_anything(rig):
    with rig.provider(url=f"https://127.0.0.1:{free_port()}") as provider:
        outcome = provider.confirm(rig.a_charge(), soon())

    assert (outcome.kind, outcome.stage) == (OutcomeKind.NOT_EXECUTED, Stage.NOT_SENT)
    assert outcome.error == "refused"


def test_expired_deadline_sends_nothing_and_proves_nothing(rig, provider):
    charge = ready(provider, rig.a_charge())

    sent = provider.confirm(charge, soon(0))
    looked = provider.look_up(charge, soon(0))

    assert (sent.kind, sent.stage) == (OutcomeKind.NOT_EXECUTED, Stage.NOT_SENT)
    assert (looked.kind, looked.stage) == (OutcomeKind.UNKNOWN, Stage.NOT_SENT)
    assert rig.taken(charge) == []


def test_a_wrong_api_key_proves_that_the_call_was_not_executed(rig, provider):
    charge = ready(provider, rig.a_charge())

    with rig.provider(api_key="nonsense") as stranger:
        outcome = stranger.confirm(charge, soon())

    assert (outcome.kind, outcome.stage) == (OutcomeKind.NOT_EXECUTED, Stage.ANSWERED)
    assert rig.taken(charge) == []


def test_too_many_calls_prove_that_this_one_was_not_executed(rig, provider):
    charge = ready(provider, rig.a_charge())

    with rig.front.failing("error_429"):
        outcome = provider.confirm(charge, soon())

    assert (outcome.kind, outcome.error) == (OutcomeKind.NOT_EXECUTED, "http_429")
    assert rig.taken(charge) == []


# --- Doubt, and how it ends ---------------------------------------------------------------------


@pytest.mark.parametrize("fault", DOUBTS)
def test_a_confirm_that_is_lost_is_doubt_and_ends_charged_once(rig, provider, fault):
    charge = ready(provider, rig.a_charge())

    with rig.front.failing(fault):
        doubt = provider.confirm(charge, patience(fault))
    moved = rig.taken(charge)
    end = settled(provider, charge)

    assert doubt.kind is OutcomeKind.UNKNOWN
    assert moved == ([2599] if DOUBTS[fault] else [])
    assert (end.kind, end.amount_received) == (OutcomeKind.SUCCEEDED, 2599)
    assert rig.taken(charge) == [2599]


@pytest.mark.parametrize("fault", ["reset_after", "error_500_after"])
def test_a_decline_that_is_lost_is_found_and_not_tried_again(rig, provider, fault):
    charge = ready(provider, rig.a_charge(rig.refused_card))

    with rig.front.failing(fault):
        doubt = provider.confirm(charge, soon())
    end = provider.look_up(charge, soon())

    assert doubt.kind is OutcomeKind.UNKNOWN
    assert end.kind is OutcomeKind.DECLINED
    assert rig.taken(charge) == []


@pytest.mark.parametrize("fault", ["hang", *UNANSWERED])
def test_a_look_up_that_fails_proves_nothing(rig, provider, fault):
    charge, _ = confirmed(provider, rig.a_charge())

    with rig.front.failing(fault, "GET", "POST"):
        outcome = provider.look_up(charge, patience(fault))

    assert outcome.kind is OutcomeKind.UNKNOWN


def test_charge_unknown_to_the_provider_is_doubt_not_absence(rig, provider):
    charge, _ = confirmed(provider, rig.a_charge())
    unknown_ref = f"{str(charge.provider_ref)[:3]}nosuchthing"

    outcome = provider.look_up(replace(charge, provider_ref=unknown_ref), soon())

    assert outcome.kind is OutcomeKind.UNKNOWN


@pytest.mark.parametrize(
    "lie", [{"payment_id": "pay_other"}, {"amount_minor": 2600}, {"currency": "eur"}]
)
def test_an_answer_about_something_else_is_a_mismatch(rig, provider, lie: dict[str, Any]):
    charge, _ = confirmed(provider, rig.a_charge())

    outcome = provider.look_up(replace(charge, **lie), soon())

    assert (outcome.kind, outcome.error) == (OutcomeKind.UNKNOWN, "mismatch")


def test_unconfirmed_charge_is_proven_absent_once_its_key_is_old(rig, provider):
    charge = ready(provider, rig.a_charge(created_at=datetime.now(UTC) - timedelta(hours=21)))

    outcome = provider.look_up(charge, soon())

    assert (outcome.kind, outcome.stage) == (OutcomeKind.NOT_EXECUTED, Stage.ANSWERED)
    assert rig.taken(charge) == []


def test_old_charge_without_its_reference_is_found_by_metadata(rig, provider):
    charge, _ = confirmed(provider, rig.a_charge())
    forgotten = replace(
        charge, provider_ref=None, created_at=datetime.now(UTC) - timedelta(hours=21)
    )

    outcome = provider.look_up(forgotten, soon())

    if rig.lists_by_time:
        assert (outcome.kind, outcome.provider_ref) == (OutcomeKind.SUCCEEDED, charge.provider_ref)
    else:
        assert outcome.kind is OutcomeKind.UNKNOWN
    assert rig.taken(charge) == [2599]


# --- Reserved money -----------------------------------------------------------------------------


@pytest.fixture
def reserved(rig, provider) -> Charge:
    charge, outcome = confirmed(provider, rig.a_charge(capture_automatically=False))
    assert outcome.kind is OutcomeKind.SUCCEEDED
    assert (outcome.amount_capturable, outcome.amount_received) == (2599, 0)
    return charge


def test_reserving_takes_nothing(rig, provider, reserved):
    found = provider.look_up(reserved, soon())

    assert (found.kind, found.amount_capturable) == (OutcomeKind.SUCCEEDED, 2599)
    assert rig.taken(reserved) == []


@pytest.mark.parametrize("amount_minor", [1000, 2599])
def test_a_capture_takes_what_was_asked_for_and_once(rig, provider, reserved, amount_minor):
    key = f"{reserved.provider_key}-capture"

    outcomes = [provider.capture(reserved, amount_minor, key, soon()) for _ in range(2)]

    first = outcomes[0]
    assert (first.kind, first.amount_received) == (OutcomeKind.SUCCEEDED, amount_minor)
    assert outcomes[1].kind is (OutcomeKind.SUCCEEDED if rig.honours_keys else OutcomeKind.UNKNOWN)
    assert rig.taken(reserved) == [amount_minor]


@pytest.mark.parametrize("fault", ["reset", "reset_after", "error_500_after", "error_503"])
def test_a_capture_that_is_lost_is_doubt_and_a_look_up_ends_it(rig, provider, reserved, fault):
    with rig.front.failing(fault):
        doubt = provider.capture(reserved, 1000, f"{reserved.provider_key}-capture", soon())
    found = provider.look_up(reserved, soon())

    assert doubt.kind is OutcomeKind.UNKNOWN
    if not DOUBTS[fault]:
        assert (found.kind, found.amount_capturable) == (OutcomeKind.SUCCEEDED, 2599)
    elif rig.tells_captured:
        assert (found.kind, found.amount_received) == (OutcomeKind.SUCCEEDED, 1000)
    else:
        # Its answer lacks the captured amount, and we do not guess it.
        assert (found.kind, found.error) == (OutcomeKind.UNKNOWN, "mismatch")
    assert rig.taken(reserved) == ([1000] if DOUBTS[fault] else [])


def test_cancelling_releases_it_and_a_look_up_agrees(rig, provider, reserved):
    key = f"{reserved.provider_key}-cancel"

    outcomes = [provider.cancel(reserved, key, soon()) for _ in range(2)]
    found = provider.look_up(reserved, soon())

    assert (outcomes[0].kind, outcomes[0].error) == (OutcomeKind.NOT_EXECUTED, "canceled")
    assert (found.kind, found.error) == (OutcomeKind.NOT_EXECUTED, "canceled")
    assert outcomes[1].kind in (OutcomeKind.NOT_EXECUTED, OutcomeKind.UNKNOWN)
    assert rig.taken(reserved) == []


def test_what_was_released_cannot_be_captured(rig, provider, reserved):
    provider.cancel(reserved, f"{reserved.provider_key}-cancel", soon())

    outcome = provider.capture(reserved, 2599, f"{reserved.provider_key}-capture", soon())

    if rig.refuses_released:
        assert outcome.kind is not OutcomeKind.SUCCEEDED
        assert rig.taken(reserved) == []
    else:
        # The only guard is then ours: captures and voids exclude each other on the payment's row.
        assert (outcome.kind, rig.taken(reserved)) == (OutcomeKind.SUCCEEDED, [2599])


@pytest.mark.parametrize("fault", ["reset", "reset_after", "error_500_after", "error_503"])
def test_a_cancel_that_is_lost_is_doubt_and_a_look_up_ends_it(rig, provider, reserved, fault):
    with rig.front.failing(fault):
        doubt = provider.cancel(reserved, f"{reserved.provider_key}-cancel", soon())
    found = provider.look_up(reserved, soon())

    assert doubt.kind is OutcomeKind.UNKNOWN
    if DOUBTS[fault]:
        assert (found.kind, found.error) == (OutcomeKind.NOT_EXECUTED, "canceled")
    else:
        assert (found.kind, found.amount_capturable) == (OutcomeKind.SUCCEEDED, 2599)
    assert rig.taken(reserved) == []


def test_what_was_captured_stays_when_it_is_cancelled(rig, provider, reserved):
    provider.capture(reserved, 2599, f"{reserved.provider_key}-capture", soon())

    outcome = provider.cancel(reserved, f"{reserved.provider_key}-cancel", soon())

    assert outcome.kind is not OutcomeKind.NOT_EXECUTED
    assert outcome.kind is not OutcomeKind.DECLINED
    assert rig.taken(reserved) == [2599]
    assert rig.given_back(reserved) == []


# --- Refunds ------------------------------------------------------------------------------------


def test_refunds_give_back_a_part_at_a_time(rig, provider):
    charge, _ = confirmed(provider, rig.a_charge())

    outcomes = [provider.refund(a_refund(charge, amount), soon()) for amount in (599, 2000)]

    assert [outcome.kind for outcome in outcomes] == [OutcomeKind.SUCCEEDED] * 2
    assert outcomes[0].provider_ref != outcomes[1].provider_ref
    assert sorted(rig.given_back(charge)) == [599, 2000]


def test_repeated_refund_is_the_same_where_keys_are_honoured(rig, provider):
    charge, _ = confirmed(provider, rig.a_charge())
    refund = a_refund(charge)

    outcomes = [provider.refund(refund, soon()) for _ in range(2)]

    assert [outcome.kind for outcome in outcomes] == [OutcomeKind.SUCCEEDED] * 2
    # Other providers would refund twice, so a refund in doubt is looked up before a repeat.
    assert rig.given_back(charge) == ([599] if rig.honours_keys else [599, 599])


@pytest.mark.parametrize("fault", DOUBTS)
def test_a_refund_that_is_lost_is_doubt_and_ends_given_back_once(rig, provider, fault):
    charge, _ = confirmed(provider, rig.a_charge())
    refund = a_refund(charge)

    with rig.front.failing(fault):
        doubt = provider.refund(refund, patience(fault))
    found = provider.look_up_refund(refund, soon())
    if found.kind is OutcomeKind.NOT_EXECUTED:
        again = provider.refund(refund, soon())
        assert again.kind is OutcomeKind.SUCCEEDED

    assert doubt.kind is OutcomeKind.UNKNOWN
    proven = OutcomeKind.SUCCEEDED if DOUBTS[fault] else OutcomeKind.NOT_EXECUTED
    assert (found.kind, found.stage) == (proven, Stage.ANSWERED)
    assert rig.given_back(charge) == [599]


@pytest.mark.parametrize("fault", UNANSWERED)
def test_a_look_up_of_a_refund_that_fails_proves_nothing(rig, provider, fault):
    charge, _ = confirmed(provider, rig.a_charge())

    with rig.front.failing(fault, "GET"):
        outcome = provider.look_up_refund(a_refund(charge), soon())

    assert outcome.kind is OutcomeKind.UNKNOWN


def test_more_than_there_is_is_not_given_back(rig, provider):
    charge, _ = confirmed(provider, rig.a_charge())

    outcome = provider.refund(a_refund(charge, 2600), soon())

    if rig.limits_refunds:
        assert (outcome.kind, outcome.stage) == (OutcomeKind.DECLINED, Stage.ANSWERED)
        assert rig.given_back(charge) == []
    else:
        # The only limit is then ours: the payment's row reserves the remaining amount.
        assert rig.given_back(charge) == [2600]


# --- The books ----------------------------------------------------------------------------------


def test_the_books_lead_back_to_ours(rig, provider):
    began = datetime.now(UTC) - timedelta(seconds=5)
    taken, _ = confirmed(provider, rig.a_charge())
    refused, _ = confirmed(provider, rig.a_charge(rig.refused_card))

    if not rig.lists_by_time:
        with pytest.raises(Busy):
            list(provider.list_since(began, soon()))
        return
    listed = {charge.payment_id: charge for charge in provider.list_since(began, soon())}

    found = listed[taken.payment_id]
    assert (found.provider_ref, found.merchant_id) == (taken.provider_ref, taken.merchant_id)
    assert (found.amount_minor, found.currency) == (2599, "usd")
    assert found.outcome.kind is OutcomeKind.SUCCEEDED
    assert found.created_at >= began.replace(microsecond=0)
    assert listed[refused.payment_id].outcome.kind is OutcomeKind.DECLINED


@pytest.mark.parametrize("fault", UNANSWERED)
def test_books_that_cannot_be_read_are_not_taken_for_empty_ones(rig, provider, fault):
    with rig.front.failing(fault, "GET"), pytest.raises(Busy):
        list(provider.list_since(datetime.now(UTC), soon()))
