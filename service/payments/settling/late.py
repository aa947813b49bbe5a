"""Checks settled payments for late facts: paid, released, refunded, disputed.

Hints arrive by webhook and from the sweep; each causes a check, which reads the provider's own
reference and believes only that answer.
"""

from __future__ import annotations

import logging
from uuid import UUID

from service.errors import Busy
from service.ids import (
    new_id,
    parse_id,
)
from service.observability.metrics import catalogue as metrics
from service.payments.charge.handler import charge_of
from service.payments.charge.model import (
    Payment,
    Status,
)
from service.payments.charge.store import PaymentStore
from service.payments.movements.model import REFUND_PREFIX, Movement
from service.payments.movements.store import MovementStore
from service.payments.settling.late_facts import (
    LATE_MOVES,
    RESTING,
    contradicts,
    late_target,
    released_with_capture,
    row_of,
)
from service.payments.settling.late_store import AlreadyKnown, Contradiction, LateCheck, LateStore
from service.payments.settling.orphans import OrphanStore
from service.payments.settling.parking import park
from service.providers.base import Outcome, OutcomeKind, ProviderCharge, Stage
from service.providers.later import LaterProvider, ProviderRefund
from service.resilience.deadline import Deadline

log = logging.getLogger(__name__)

# The pauses after a refused or failed read: 10 s, 20 s, 40 s .. 1 h; after about a day once a day, with
# a page each time. Two months later the charge becomes an orphan for a person, and the check ends.
AGAIN_S = 10.0
AGAIN_MAX_S = 3600.0
CHECK_TRIES = 30
RARELY_S = 86_400.0
RARE_TRIES = 60
NEVER_ANSWERED = "could not be compared with the provider for two months"
# The pause for a refund by hand without the bank's decision.
PENDING_AGAIN_S = 3600.0
# Far more refunds than a payment has.
REFUNDS_MAX = 1000
BY_HAND = "made at the provider"
OURS_LOST = "made by us; its row was lost"
# An intent in these states could still be paid by a holder of its client secret.
_UNPAID = (Status.DECLINED, Status.EXPIRED)


class LateFacts:
    """Checks one settled payment at a time; any number may run, in any number of processes."""

    def __init__(
        self,
        store: PaymentStore,
        late: LateStore,
        movements: MovementStore,
        orphans: OrphanStore,
        provider: LaterProvider,
    ) -> None:
        self._store = store
        self._late = late
        self._movements = movements
        self._orphans = orphans
        self._provider = provider

    def name_hint(self, hint: tuple[str, str], deadline: Deadline) -> None:
        """Find out from the provider which payment of ours events about a charge are about."""
        provider, charge_ref = hint
        charge = self._provider.identify(charge_ref, deadline)
        ids = None if charge is None else ids_of(charge)
        self._late.name_hints(provider, charge_ref, ids, deadline)

    def settle(self, check: LateCheck, deadline: Deadline) -> None:
        """Check one payment and write the facts. The caller holds the check's lease."""
        payment = self._store.get(check.merchant_id, check.payment_id, deadline)
        if payment is None or payment.provider_ref is None:
            self._late.end_check(check, deadline)
            return
        if payment.status not in RESTING:
            # Its own look-up settles it first.
            self._late.postpone_check(check, _pause_s(check), deadline)
            return
        try:
            again_in_s = self._look(check, payment, deadline)
        except Busy as error:
            log.info("late.postponed", extra={"payment_id": payment.id, "code": error.code})
            again_in_s = _pause_s(check)
        if again_in_s is None:
            self._late.end_check(check, deadline)
        elif check.tries < CHECK_TRIES:
            self._late.postpone_check(check, again_in_s, deadline)
        else:
            self._ask_rarely(check, payment, deadline)

    def put_off(self, check: LateCheck, error: Exception, deadline: Deadline) -> None:
        """After an error of ours: the check is due again later, and a person is paged."""
        payment_id = f"pay_{check.payment_id.hex}"
        pause_s = max(park(error, None, payment_id=payment_id), _pause_s(check))
        self._late.postpone_check(check, pause_s, deadline)

    def _ask_rarely(self, check: LateCheck, payment: Payment, deadline: Deadline) -> None:
        """A check without a result after a day: it pages, and runs once a day from then on."""
        metrics.rows_parked_total.inc()
        log.error("late.given_up", extra={"payment_id": payment.id, "tries": check.tries})
        if check.tries < CHECK_TRIES + RARE_TRIES:
            self._late.postpone_check(check, RARELY_S, deadline)
            return
        self.report(payment, Outcome(OutcomeKind.UNKNOWN, Stage.ANSWERED), NEVER_ANSWERED, deadline)
        self._late.end_check(check, deadline)

    def _look(self, check: LateCheck, payment: Payment, deadline: Deadline) -> float | None:
        """Compare the charge, its refunds and its disputes; returns the next check's time, None: done."""
        if check.closes and payment.status in _UNPAID:
            outcome = self._close(check, payment, deadline)
        else:
            outcome = self._provider.look_up(charge_of(payment), deadline)
        if outcome.kind is OutcomeKind.UNKNOWN:
            return _pause_s(check)
        moved = self.apply(payment, outcome, deadline)
        if moved is None:
            # A capture or a void of ours is in progress: its look-up comes sooner.
            return _pause_s(check)
        if check.closes and moved.status in _UNPAID and outcome.error != "canceled":
            return None if self._is_final(outcome) else _pause_s(check)
        if moved.amount_captured_minor == 0:
            return None
        again_in_s = self._compare_refunds(check, moved, deadline)
        self._compare_disputes(moved, deadline)
        return again_in_s

    def _close(self, check: LateCheck, payment: Payment, deadline: Deadline) -> Outcome:
        """Cancel the intent of a payment that ended without money; returns the outcome."""
        # A new key for each try: the provider would replay a failure under the same one.
        key = f"{payment.provider_key}-close-{check.tries}"
        outcome = self._provider.cancel(charge_of(payment), key, deadline)
        if outcome.kind is OutcomeKind.NOT_EXECUTED and outcome.error == "canceled":
            log.info("late.intent_closed", extra={"payment_id": payment.id})
            return outcome
        return self._provider.look_up(charge_of(payment), deadline)

    def _is_final(self, outcome: Outcome) -> bool:
        """Whether a refused charge can never be paid: the Charges API has no second try."""
        return not self._provider.two_phase and outcome.kind is OutcomeKind.DECLINED

    # --- The charge itself ----------------------------------------------------------------------

    def apply(self, payment: Payment, outcome: Outcome, deadline: Deadline) -> Payment | None:
        """Move a settled payment to the status of its charge at the provider, or report an orphan.

        None: a capture or a void of ours is in progress, and its look-up settles it.
        """
        target = late_target(outcome)
        if target is None or target is payment.status:
            if target is Status.SUCCEEDED and outcome.amount_received != (
                payment.amount_captured_minor
            ):
                self.report(payment, outcome, "captured with another amount", deadline)
            return payment
        if target in LATE_MOVES.get(payment.status, ()):
            return self._move(payment, target, outcome, deadline)
        if outcome.kind is OutcomeKind.SUCCEEDED and payment.status is not Status.SUCCEEDED:
            self.report(payment, outcome, f"charged, but {payment.status.value} here", deadline)
        elif payment.status is Status.SUCCEEDED:
            self.report(payment, outcome, f"{target.value}, but succeeded here", deadline)
        return payment

    def _move(
        self, payment: Payment, target: Status, outcome: Outcome, deadline: Deadline
    ) -> Payment | None:
        try:
            moved = self._late.move(payment, target, outcome, deadline)
        except Contradiction:
            self.report(payment, outcome, "more than was authorised", deadline)
            return payment
        if moved is None:
            now = self._store.read(payment, deadline)
            return None if now.status is payment.status else now
        metrics.reconcile_settled_total.labels(outcome=moved.status.value).inc()
        log.warning(
            "late.moved",
            extra={
                "payment_id": payment.id,
                "was": payment.status.value,
                "status": moved.status.value,
            },
        )
        return moved

    def report(self, payment: Payment, outcome: Outcome, reason: str, deadline: Deadline) -> None:
        """Store a charge that contradicts its payment, and page."""
        charge = ProviderCharge(
            provider_ref=outcome.provider_ref or payment.provider_ref or payment.id,
            payment_id=payment.id,
            merchant_id=str(payment.merchant_id),
            amount_minor=outcome.amount_received or payment.amount_minor,
            currency=payment.currency,
            outcome=outcome,
            created_at=payment.created_at,
        )
        self.report_charge(charge, payment.merchant_id, payment.payment_id, reason, deadline)

    def report_charge(
        self,
        charge: ProviderCharge,
        merchant_id: UUID | None,
        payment_id: UUID | None,
        reason: str,
        deadline: Deadline,
    ) -> None:
        """Store a charge that our books cannot explain, and page."""
        is_new = self._orphans.add_orphan(
            charge,
            provider=self._provider.name,
            merchant_id=merchant_id,
            payment_id=payment_id,
            reason=reason,
            deadline=deadline,
        )
        if is_new:
            metrics.sweep_orphans_total.inc()
            log.error("sweep.orphan", extra={"provider_ref": charge.provider_ref, "reason": reason})

    # --- Refunds --------------------------------------------------------------------------------

    def _compare_refunds(
        self, check: LateCheck, payment: Payment, deadline: Deadline
    ) -> float | None:
        """Adjust our refunds to the provider's; returns the next check's time, None: they are equal."""
        # Read ours first: a row written in between is then no news, and a changed row is not moved
        # back by an older answer.
        known = self._movements.list_refunds(
            payment.merchant_id, payment.payment_id, deadline, limit=REFUNDS_MAX
        )
        found = self._provider.refunds_of(str(payment.provider_ref), deadline)
        release = released_with_capture(
            found,
            authorised_minor=payment.amount_minor,
            captured_minor=payment.amount_captured_minor,
        )
        # An amount reserved by one of our refunds in progress may be the amount that the provider
        # refunded otherwise: only after its end is it known whether the payment covers both.
        may_make_room = any(not movement.has_ended for movement in known)
        again_in_s: float | None = None
        for refund in found:
            movement = row_of(refund, known)
            if movement is not None:
                is_written = self._compare_refund(payment, movement, refund, deadline)
            elif refund.provider_ref == release or refund.kind is OutcomeKind.DECLINED:
                continue
            else:
                is_written = self._add_refund(payment, refund, deadline)
            if is_written:
                continue
            if may_make_room:
                again_in_s = _pause_s(check)
            elif refund.kind is OutcomeKind.PENDING:
                # No money has gone back yet, and the bank may still refuse it.
                again_in_s = again_in_s or PENDING_AGAIN_S
            else:
                reason = "a refund of more than was captured"
                self._report_refund(payment, refund, reason, deadline)
        return again_in_s

    def _compare_refund(
        self, payment: Payment, movement: Movement, refund: ProviderRefund, deadline: Deadline
    ) -> bool:
        """Write the provider's refund; False: it exceeds the payment's remaining amount."""
        if not movement.has_ended:
            self._movements.nudge(movement, deadline)
            return True
        if not contradicts(refund, movement.status):
            return True
        try:
            status = self._late.move_refund(movement, refund, deadline)
        except Contradiction:
            return False
        if status is not None:
            log.warning(
                "late.refund_moved",
                extra={
                    "payment_id": payment.id,
                    "movement_id": movement.id,
                    "status": status.value,
                },
            )
        return True

    def _add_refund(self, payment: Payment, refund: ProviderRefund, deadline: Deadline) -> bool:
        """Add the provider's refund; False: it exceeds the payment's remaining amount."""
        ours = parse_id(refund.refund_id or "", REFUND_PREFIX)
        reason = OURS_LOST if ours is not None else BY_HAND
        try:
            is_added = self._late.add_refund(payment, refund, ours or new_id(), reason, deadline)
        except AlreadyKnown:
            return True
        except Contradiction:
            return False
        if is_added:
            log.warning(
                "late.refund_added",
                extra={"payment_id": payment.id, "provider_ref": refund.provider_ref},
            )
        return is_added

    def _report_refund(
        self, payment: Payment, refund: ProviderRefund, reason: str, deadline: Deadline
    ) -> None:
        charge = ProviderCharge(
            provider_ref=refund.provider_ref,
            payment_id=payment.id,
            merchant_id=str(payment.merchant_id),
            amount_minor=refund.amount_minor,
            currency=payment.currency,
            outcome=Outcome(refund.kind, Stage.ANSWERED),
            created_at=refund.created_at,
        )
        self.report_charge(charge, payment.merchant_id, payment.payment_id, reason, deadline)

    # --- Disputes -------------------------------------------------------------------------------

    def _compare_disputes(self, payment: Payment, deadline: Deadline) -> None:
        for dispute in self._provider.disputes_of(str(payment.provider_ref), deadline):
            for event_type in self._late.put_dispute(payment, dispute, deadline):
                log.warning(
                    "late.dispute",
                    extra={
                        "payment_id": payment.id,
                        "dispute": dispute.provider_ref,
                        "event_type": event_type,
                    },
                )


def ids_of(charge: ProviderCharge) -> tuple[UUID, UUID] | None:
    """Merchant and payment from our metadata; None where it is not ours."""
    return parse_ids(charge.merchant_id, charge.payment_id)


def parse_ids(merchant_id: str | None, payment_id: str | None) -> tuple[UUID, UUID] | None:
    """The ids in our metadata; None unless both are present and ours."""
    ours = parse_id(payment_id or "", "pay_")
    try:
        merchant = UUID(merchant_id or "")
    except ValueError:
        return None
    return None if ours is None else (merchant, ours)


def _pause_s(check: LateCheck) -> float:
    return float(min(AGAIN_S * 2 ** min(check.tries - 1, 20), AGAIN_MAX_S))
