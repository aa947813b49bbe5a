"""The transitions of a payment: from which statuses, to which, and what each one writes. Pure."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from service.ids import new_id
from service.payments.charge.model import Payment, Status, fact_status, sources_of
from service.payments.charge.steps import attempts_json, detail_json, next_attempt
from service.providers.base import Outcome, OutcomeKind, Stage


@dataclass(frozen=True, slots=True, kw_only=True)
class PaymentStep:
    """One transition as a compare-and-set on the payment's row, which also writes its event."""

    payment: Payment
    status: Status
    # The statuses from which it is allowed.
    sources: Collection[Status]
    # A guess needs the fence of the lease; None: a fact, which any process may write.
    fence: int | None
    # The event's type; None: the one of the new status.
    event_type: str | None = None
    outcome: Outcome | None = None
    # The call that was answered.
    op: str | None = None
    # Keep the lease for a call that follows; else the row is due after `due_in_s` (None: never).
    is_leased: bool = False
    due_in_s: float | None = None
    # The money call starts now.
    is_sent: bool = False
    next_series: int = 0
    # None: as the outcome says.
    amount_captured_minor: int | None = None
    reason: str | None = None
    by: str | None = None
    # The provider's saved answer to the present key is an error.
    is_spent: bool = False
    is_promised: bool = False
    # Without effect while another process works on the payment.
    unless_leased: bool = False
    # The charge was found in the provider's books: as an orphan it is explained now.
    is_adoption: bool = False

    @property
    def event(self) -> str:
        return self.event_type or f"payment.{self.status.value}"

    def values(self, *, lease_s: float, pool_wait_s: float) -> dict[str, Any]:
        """The values of the statement that writes this step."""
        outcome = self.outcome
        decline = outcome.decline if outcome is not None else None
        next_action = outcome.next_action if outcome is not None else None
        captured_minor = self.amount_captured_minor
        if captured_minor is None:
            captured_minor = outcome.amount_received if outcome is not None else 0
        attempts = None
        if outcome is not None and self.op in ("prepare", "confirm"):
            attempts = attempts_json(self.payment.attempts, self.op, outcome)
        return {
            "merchant_id": self.payment.merchant_id,
            "payment_id": self.payment.payment_id,
            "status": self.status.value,
            "sources": [source.value for source in self.sources],
            "fence": self.fence,
            "provider_ref": outcome.provider_ref if outcome is not None else None,
            "amount_captured": captured_minor,
            "decline": json.dumps(decline.document()) if decline is not None else None,
            "next_action": json.dumps(dict(next_action)) if next_action else None,
            "attempts": attempts,
            "next_series": self.next_series,
            "spent": self.is_spent or (outcome is not None and outcome.is_replay),
            "promised": self.is_promised,
            "unless_leased": self.unless_leased,
            "looked_up": int(self.op == "look_up"),
            "sent": self.is_sent,
            "leased": self.is_leased,
            "due_in_s": lease_s if self.is_leased else self.due_in_s,
            "event_id": new_id(),
            "event_type": self.event,
            "detail": detail_json(
                outcome,
                pool_wait_s=pool_wait_s,
                attempt=next_attempt(self.payment.attempts) if attempts else None,
                op=self.op,
                reason=self.reason,
                by=self.by,
            ),
        }


def sending(payment: Payment, prepared: Outcome) -> PaymentStep:
    """The provider's reference, before any money can move."""
    # No attempt without a call (in one_shot, or prepared by an earlier try), and none for a
    # doubt, which is recorded next.
    is_new = prepared.stage is Stage.ANSWERED and prepared.kind is OutcomeKind.PENDING
    return PaymentStep(
        payment=payment,
        status=Status.SENDING,
        sources=[Status.ACCEPTED],
        fence=payment.fence,
        outcome=prepared,
        op="prepare" if is_new else None,
        is_leased=True,
        is_sent=True,
    )


def adopted(payment: Payment, provider_ref: str, *, keep_lease: bool) -> PaymentStep:
    """A charge of the provider's books, treated as just sent and to be looked up at once."""
    return PaymentStep(
        payment=payment,
        status=Status.SENDING,
        sources=[Status.ACCEPTED],
        fence=payment.fence,
        outcome=Outcome(OutcomeKind.PENDING, Stage.NOT_SENT, provider_ref=provider_ref, error=None),
        due_in_s=0.0,
        is_leased=keep_lease,
        is_sent=True,
        reason="found in the provider's books",
        is_adoption=True,
    )


def sent_again(payment: Payment) -> PaymentStep:
    """The same key once more."""
    return PaymentStep(
        payment=payment,
        status=payment.status,
        sources=[payment.status],
        fence=payment.fence,
        event_type="payment.send_again",
        is_leased=True,
        is_sent=True,
    )


def next_series(payment: Payment) -> PaymentStep:
    """The next provider key, after proof that the last was not executed."""
    is_queued = payment.status is Status.ACCEPTED
    return PaymentStep(
        payment=payment,
        status=payment.status,
        sources=[payment.status],
        fence=payment.fence,
        event_type="payment.prepare_again" if is_queued else "payment.confirm_again",
        is_leased=True,
        is_sent=not is_queued,
        next_series=1,
    )


def answered(
    payment: Payment, outcome: Outcome, *, op: str, due_in_s: float, is_promised: bool
) -> PaymentStep:
    """A call's or look-up's outcome: a fact from any status, or doubt under the fence."""
    target = fact_status(outcome)
    if target is not None and target is not payment.status:
        return PaymentStep(
            payment=payment,
            status=target,
            sources=sources_of(target),
            fence=None,
            outcome=outcome,
            op=op,
            due_in_s=due_in_s if target is Status.REQUIRES_ACTION else None,
            is_promised=is_promised,
        )
    is_doubt = outcome.kind is OutcomeKind.UNKNOWN and payment.status is Status.SENDING
    return PaymentStep(
        payment=payment,
        status=Status.UNKNOWN if is_doubt else payment.status,
        sources=[payment.status],
        fence=payment.fence,
        outcome=outcome,
        op=op,
        event_type=None if is_doubt else f"payment.{op}",
        due_in_s=due_in_s,
        is_promised=is_promised,
    )


def given_up(payment: Payment, status: Status, reason: str, outcome: Outcome | None) -> PaymentStep:
    """The end of waiting: expired, not_executed (with proof) or needs_review."""
    return PaymentStep(
        payment=payment,
        status=status,
        sources=[payment.status],
        fence=payment.fence,
        outcome=outcome,
        op="look_up",
        reason=reason,
        # The key of a canceled charge is used up: at the provider it always names that charge.
        is_spent=outcome is not None and outcome.error == "canceled",
    )


def resolved(payment: Payment, status: Status, evidence: str, by: str) -> PaymentStep:
    """A person's finding about a payment in doubt."""
    return PaymentStep(
        payment=payment,
        status=status,
        sources=[Status.UNKNOWN, Status.NEEDS_REVIEW],
        fence=None,
        amount_captured_minor=payment.amount_minor if status is Status.SUCCEEDED else 0,
        reason=evidence,
        by=by,
        unless_leased=True,
        is_promised=True,
    )
