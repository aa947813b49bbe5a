"""An operator's finding about a capture, void or refund in doubt, with its evidence and an audit row."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Literal

from service.database.pool.pool import Checkout, ConnectionPool, Statement
from service.ids import new_id
from service.payments import audit
from service.payments.audit import Actor, Entry
from service.payments.charge.model import Status, sources_of
from service.payments.charge.steps import detail_json
from service.payments.events.outbox import OUTBOX
from service.payments.movements.model import Kind, Movement, MovementStatus
from service.resilience.deadline import Deadline

Outcome = Literal["succeeded", "declined", "not_executed"]

# A movement without a lease, of a payment without a call under way. The amount that the movement held of
# its payment is spent or released in the same statement, as at every other end of a movement.
RESOLVE = Statement(
    "late_resolve_movement",
    f"""
    WITH m AS (
        UPDATE movements SET
            status = %(status)s::text, decline = %(decline)s::jsonb, promised = true,
            leased = false, due_at = NULL, unknown_since = NULL, updated_at = now()
        WHERE merchant_id = %(merchant_id)s::uuid AND movement_id = %(movement_id)s::uuid
          AND status IN ('unknown', 'needs_review') AND NOT (leased AND due_at > now())
        RETURNING *
    ), p AS (
        UPDATE payments p SET
            status = coalesce(%(payment_status)s::text, p.status),
            next_action = CASE WHEN %(payment_status)s::text IS NULL THEN p.next_action END,
            due_at = CASE WHEN %(payment_status)s::text IS NULL THEN p.due_at END,
            amount_captured = greatest(p.amount_captured, %(amount_captured)s::bigint),
            amount_settling = CASE WHEN m.kind = 'refund' THEN p.amount_settling ELSE 0 END,
            amount_refunding = p.amount_refunding
                - CASE WHEN m.kind = 'refund' THEN m.amount ELSE 0 END,
            amount_refunded = p.amount_refunded
                + CASE WHEN m.kind = 'refund' AND m.status = 'succeeded' THEN m.amount ELSE 0 END,
            updated_at = now()
        FROM m
        WHERE p.merchant_id = m.merchant_id AND p.payment_id = m.payment_id
          AND NOT (p.leased AND p.due_at > now())
          AND (%(payment_status)s::text IS NULL OR p.status = ANY(%(payment_sources)s::text[]))
        RETURNING p.merchant_id, p.payment_id
    ), event AS (
        INSERT INTO events (merchant_id, event_id, payment_id, type, detail)
        SELECT merchant_id, %(event_id)s::uuid, payment_id, kind || '.' || status, %(detail)s::jsonb
        FROM m
        UNION ALL
        SELECT merchant_id, %(payment_event_id)s::uuid, payment_id,
               'payment.' || %(payment_status)s::text, %(detail)s::jsonb
        FROM p WHERE %(payment_status)s::text IS NOT NULL
        RETURNING merchant_id, event_id, payment_id, type, created_at
    ), {OUTBOX}
    SELECT (SELECT count(*) FROM p) FROM m
    """,
)
_DECLINES: dict[Outcome, dict[str, str]] = {
    "declined": {"code": "declined", "message": "An operator found that the provider refused it."},
    "not_executed": {
        "code": "not_executed",
        "message": "An operator found that no money was moved.",
    },
}


@dataclass(frozen=True, slots=True)
class OperatorFinding:
    """An operator's finding, the place to verify it, and the operator."""

    outcome: Outcome
    evidence: str
    by: str


class _PaymentCannotFollow(Exception):
    """The payment's status excludes the finding, or a call about the payment is in progress."""


def resolve(
    pool: ConnectionPool,
    movement: Movement,
    finding: OperatorFinding,
    deadline: Deadline,
    *,
    actor: Actor,
) -> bool:
    """Write a finding, its payment's amounts and the audit row; False: nothing was written.

    A movement in doubt can be resolved while no call about it or its payment is under way.
    """
    succeeded = finding.outcome == "succeeded"
    status = MovementStatus.SUCCEEDED if succeeded else MovementStatus.DECLINED
    target = _PAYMENT_STATUSES.get(movement.kind) if succeeded else None
    is_capture = movement.kind is Kind.CAPTURE and succeeded
    named = {f"{movement.kind.value}_id": movement.movement_id.hex}
    parameters = {
        "merchant_id": str(movement.merchant_id),
        "movement_id": str(movement.movement_id),
        "status": status.value,
        "decline": None if succeeded else json.dumps(_DECLINES[finding.outcome]),
        "payment_status": target.value if target else None,
        "payment_sources": sources_of(target) if target else [],
        "amount_captured": movement.amount_minor if is_capture else 0,
        "event_id": str(new_id()),
        "payment_event_id": str(new_id()),
        "detail": detail_json(
            pool_wait_s=None, op="resolve", reason=finding.evidence, by=finding.by, **named
        ),
    }
    entry = Entry(
        f"{movement.kind.value}.resolved",
        movement.merchant_id,
        target=movement.id,
        detail={
            "payment": f"pay_{movement.payment_id.hex}",
            "from": movement.status.value,
            "to": status.value,
            "outcome": finding.outcome,
            "evidence": finding.evidence,
        },
    )

    def act(transaction: Checkout) -> bool:
        rows = transaction.run(RESOLVE, parameters)
        if rows and not rows[0][0]:
            raise _PaymentCannotFollow
        if rows:
            audit.write(transaction, actor, entry)
        return bool(rows)

    try:
        return audit.in_transaction(pool, act, deadline)
    except _PaymentCannotFollow:
        return False


_PAYMENT_STATUSES = {Kind.CAPTURE: Status.SUCCEEDED, Kind.VOID: Status.CANCELED}
