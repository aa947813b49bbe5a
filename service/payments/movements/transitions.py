"""The transitions of a capture, void or refund: from which statuses, to which, and what it writes. Pure."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from service.ids import new_id
from service.payments.charge.model import sources_of
from service.payments.charge.steps import attempts_json, detail_json, next_attempt
from service.payments.movements.model import (
    OPEN,
    Kind,
    Movement,
    MovementStatus,
    Settlement,
    named_in_detail,
    spends_key,
)
from service.providers.base import Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class MovementStep:
    """One transition as a compare-and-set on the movement's row, which also writes its events."""

    movement: Movement
    # The movement's new status, and what is certain about its payment.
    found: Settlement
    # The statuses from which it is allowed.
    sources: Collection[MovementStatus]
    # A guess needs the fence of the lease; None: a fact, which any process may write.
    fence: int | None
    # The second word of the event's type; None: the new status, or a look-up without news.
    event_word: str | None = None
    outcome: Outcome | None = None
    # The call that was answered.
    op: str | None = None
    # Keep the lease for a call that follows; else the row is due after `due_in_s` (None: never).
    is_leased: bool = False
    due_in_s: float | None = None
    # The call starts now.
    is_sent: bool = False
    next_series: int = 0
    is_promised: bool = False

    @property
    def event(self) -> str | None:
        is_no_news = self.found.status is self.movement.status and self.op == "look_up"
        return self.event_word or (self.op if is_no_news else self.found.status.value)

    def values(self, *, lease_s: float, pool_wait_s: float) -> dict[str, Any]:
        """The values of the statement that writes this step."""
        movement, outcome, found = self.movement, self.outcome, self.found
        is_attempt = outcome is not None and self.op == movement.kind.value
        attempts = None
        if outcome is not None and is_attempt:
            attempts = attempts_json(movement.attempts, movement.kind.value, outcome)
        is_refund = movement.kind is Kind.REFUND
        target = found.payment_status
        return {
            "merchant_id": movement.merchant_id,
            "movement_id": movement.movement_id,
            "status": found.status.value,
            "sources": [source.value for source in self.sources],
            "fence": self.fence,
            # A capture has its payment's reference; a refund has a separate one.
            "provider_ref": outcome.provider_ref if outcome and is_refund else None,
            "decline": json.dumps(found.decline.document()) if found.decline else None,
            "attempts": attempts,
            "next_series": self.next_series,
            "key_spent": bool(attempts and outcome and spends_key(movement, outcome)),
            "promised": self.is_promised,
            "looked_up": int(self.op == "look_up"),
            "sent": self.is_sent,
            "leased": self.is_leased,
            "due_in_s": lease_s if self.is_leased else self.due_in_s,
            "payment_status": target.value if target else None,
            "payment_sources": [source.value for source in sources_of(target)] if target else [],
            "amount_captured": found.amount_captured_minor,
            "event_id": new_id(),
            "payment_event_id": new_id(),
            "event": self.event,
            "detail": detail_json(
                outcome,
                pool_wait_s=pool_wait_s,
                attempt=next_attempt(movement.attempts) if attempts else None,
                op=self.op,
                **named_in_detail(movement.kind, movement.movement_id),
            ),
        }


def sent(movement: Movement, *, with_next_key: bool, proof: Outcome | None) -> MovementStep:
    """A send, after a look-up's `proof` that no earlier one was executed."""
    is_first = movement.status is MovementStatus.ACCEPTED
    return MovementStep(
        movement=movement,
        found=Settlement(MovementStatus.SENDING if is_first else movement.status),
        sources=[movement.status],
        fence=movement.fence,
        event_word="sending" if is_first else "send_again",
        op="look_up" if proof is not None else None,
        outcome=proof,
        next_series=int(with_next_key),
        is_sent=True,
        is_leased=True,
    )


def settled(
    movement: Movement,
    outcome: Outcome,
    found: Settlement,
    *,
    op: str,
    due_in_s: float,
    is_promised: bool,
) -> MovementStep:
    """What the provider's answer settles: a fact from any open status."""
    is_change = found.status is not movement.status
    return MovementStep(
        movement=movement,
        found=found,
        # Without a change, only the lease's holder may schedule the next look-up.
        sources=OPEN if is_change else [movement.status],
        fence=None if is_change else movement.fence,
        op=op,
        outcome=outcome,
        due_in_s=due_in_s if found.status is MovementStatus.PENDING else None,
        is_promised=is_promised,
    )


def unsettled(
    movement: Movement,
    outcome: Outcome,
    status: MovementStatus | None,
    *,
    op: str,
    due_in_s: float,
    is_promised: bool,
) -> MovementStep:
    """Doubt, or another wait, under the fence (None: the status stays)."""
    target = status or movement.status
    return MovementStep(
        movement=movement,
        found=Settlement(target),
        sources=[movement.status],
        fence=movement.fence,
        op=op,
        outcome=outcome,
        due_in_s=None if _waits_for_a_person(target) else due_in_s,
        is_promised=is_promised,
    )


def _waits_for_a_person(status: MovementStatus) -> bool:
    return status is MovementStatus.NEEDS_REVIEW
