"""Each step of a payment or a movement is a transition that the state machine allows."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from uuid import uuid4

import pytest

from service.payments.charge import transitions
from service.payments.charge.model import MOVES, TERMINAL, Payment, Status
from service.payments.charge.transitions import PaymentStep
from service.payments.movements import transitions as movement_transitions
from service.payments.movements.model import ENDED, Kind, Movement, MovementStatus, Settlement
from service.providers.base import Outcome, OutcomeKind, Stage

NOW = datetime.now(UTC)
PAYMENT = Payment(
    merchant_id=uuid4(),
    payment_id=uuid4(),
    status=Status.SENDING,
    amount_minor=2599,
    currency="usd",
    payment_method="pm_card_visa",
    reference=None,
    capture_method="automatic",
    customer=None,
    metadata={},
    on_outage="queue",
    expires_at=None,
    amount_captured_minor=0,
    amount_refunded_minor=0,
    provider="stripe",
    provider_ref="pi_1",
    key_series=1,
    decline=None,
    next_action=None,
    attempts=[],
    fence=7,
    leased=True,
    look_ups=0,
    due_at=NOW,
    sent_age_s=1.0,
    doubt_age_s=1.0,
    is_expired=False,
    created_at=NOW,
    updated_at=NOW,
)
MOVEMENT = Movement(
    merchant_id=PAYMENT.merchant_id,
    movement_id=uuid4(),
    payment_id=PAYMENT.payment_id,
    kind=Kind.REFUND,
    status=MovementStatus.SENDING,
    amount_minor=2599,
    reason=None,
    provider_ref=None,
    key_series=1,
    key_digest=None,
    key_spent=False,
    promised=True,
    withdrawn=False,
    decline=None,
    attempts=[],
    fence=7,
    leased=True,
    look_ups=0,
    due_at=NOW,
    sent_age_s=1.0,
    doubt_age_s=1.0,
    created_at=NOW,
    updated_at=NOW,
)


def outcome(kind: OutcomeKind) -> Outcome:
    return Outcome(kind, Stage.ANSWERED)


def answered(status: Status, kind: OutcomeKind) -> PaymentStep:
    payment = replace(PAYMENT, status=status)
    return transitions.answered(
        payment, outcome(kind), op="confirm", due_in_s=2.0, is_promised=False
    )


@pytest.mark.parametrize("kind", OutcomeKind)
@pytest.mark.parametrize("status", Status)
def test_every_answer_is_an_allowed_transition(status, kind):
    step = answered(status, kind)

    for source in step.sources:
        assert step.status is source or step.status in MOVES[source]
        assert step.status is source or source not in TERMINAL


@pytest.mark.parametrize("kind", OutcomeKind)
@pytest.mark.parametrize("status", Status)
def test_only_a_definite_answer_needs_no_fence(status, kind):
    step = answered(status, kind)

    is_fact = kind in (OutcomeKind.SUCCEEDED, OutcomeKind.DECLINED)
    assert (step.fence is None) == (is_fact and step.status is not status)
    assert step.fence is None or (step.fence, list(step.sources)) == (7, [status])


def test_a_step_before_a_send_keeps_the_lease_under_its_fence():
    queued = replace(PAYMENT, status=Status.ACCEPTED)
    steps = [
        transitions.sending(queued, outcome(OutcomeKind.PENDING)),
        transitions.sent_again(PAYMENT),
        transitions.next_series(PAYMENT),
    ]

    for step in steps:
        values = step.values(lease_s=9.0, pool_wait_s=0.0)
        assert (values["leased"], values["due_in_s"], values["sent"]) == (True, 9.0, True)
        assert values["fence"] == 7


def test_doubt_is_unknown_only_where_money_may_have_moved():
    doubts = {status: answered(status, OutcomeKind.UNKNOWN).status for status in Status}

    assert doubts == {s: Status.UNKNOWN if s is Status.SENDING else s for s in Status}


def test_a_person_resolves_only_what_is_in_doubt_and_unleased():
    step = transitions.resolved(PAYMENT, Status.SUCCEEDED, "seen in the books", "kim")

    assert set(step.sources) == {Status.UNKNOWN, Status.NEEDS_REVIEW}
    assert (step.fence, step.unless_leased, step.by) == (None, True, "kim")


@pytest.mark.parametrize("found", MovementStatus)
def test_a_settled_movement_never_leaves_its_end(found):
    step = movement_transitions.settled(
        MOVEMENT,
        outcome(OutcomeKind.SUCCEEDED),
        Settlement(found),
        op="refund",
        due_in_s=2.0,
        is_promised=True,
    )

    assert not set(step.sources) & ENDED
    assert (step.due_in_s is None) == (found is not MovementStatus.PENDING)


@pytest.mark.parametrize("status", [None, MovementStatus.UNKNOWN, MovementStatus.NEEDS_REVIEW])
def test_an_unsettled_movement_waits_under_its_fence(status):
    step = movement_transitions.unsettled(
        MOVEMENT,
        outcome(OutcomeKind.UNKNOWN),
        status,
        op="look_up",
        due_in_s=2.0,
        is_promised=False,
    )

    assert (step.fence, list(step.sources)) == (7, [MovementStatus.SENDING])
    assert (step.due_in_s is None) == (status is MovementStatus.NEEDS_REVIEW)
    assert step.event == ("look_up" if status is None else status.value)
