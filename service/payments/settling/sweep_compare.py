"""The comparison of the provider's objects with our books: repairs, reports, and hints."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Literal
from uuid import UUID

from service.ids import parse_id
from service.observability.metrics import catalogue as metrics
from service.payments.charge.model import Payment, Status, fact_status
from service.payments.charge.store import PaymentStore
from service.payments.movements.model import REFUND_PREFIX
from service.payments.settling.late import LateFacts, ids_of, parse_ids
from service.payments.settling.late_facts import (
    AFTERWARDS,
    ENDED_WITHOUT_MONEY,
    RESTING,
    contradicts,
    is_news,
    late_target,
)
from service.payments.settling.late_store import LateStore
from service.payments.settling.orphans import OrphanStore
from service.providers.base import OutcomeKind, ProviderCharge
from service.providers.later import (
    EVENT_SOURCE,
    EventHint,
    Feed,
    Item,
    LaterProvider,
    ProviderDispute,
    ProviderRefund,
)
from service.resilience.deadline import Deadline

log = logging.getLogger(__name__)

ForeignCharges = Literal["page", "ignore"]


class Comparison:
    """Compares one page of a list; the same page may be compared any number of times."""

    def __init__(
        self,
        store: PaymentStore,
        orphans: OrphanStore,
        late: LateFacts,
        late_store: LateStore,
        provider: LaterProvider,
        *,
        foreign_charges: ForeignCharges = "ignore",
    ) -> None:
        self._store = store
        self._orphans = orphans
        self._late = late
        self._late_store = late_store
        self._provider = provider
        self._foreign_charges = foreign_charges
        self._of_feed: Mapping[Feed, Callable[[Sequence[Item], Deadline], None]] = {
            Feed.CHARGES: self._compare_charges,
            Feed.REFUNDS: self._compare_refunds,
            Feed.DISPUTES: self._compare_disputes,
            Feed.EVENTS: self._compare_events,
        }

    def compare(self, feed: Feed, items: Sequence[Item], deadline: Deadline) -> None:
        """Compare a page of this list. Raises Busy on an outage; then it is compared again."""
        self._of_feed[feed](items, deadline)

    # --- Charges: by creation -------------------------------------------------------------------

    def _compare_charges(self, items: Sequence[Item], deadline: Deadline) -> None:
        charges = [item for item in items if isinstance(item, ProviderCharge)]
        moved = [charge for charge in charges if _tells_of_money(charge)]
        ids = [ids for charge in moved if (ids := ids_of(charge)) is not None]
        payments = self._late_store.payments(ids, deadline)
        unknown = {known[0] for known in ids if known not in payments}
        strangers = self._late_store.strangers(unknown, deadline)
        holders = self._holders(moved, payments, strangers, deadline)
        for charge in moved:
            known = ids_of(charge)
            if known is not None and known[0] in strangers:
                self._compare_stranger(charge, known[0], strangers, deadline)
                continue
            payment = payments.get(known) if known else None
            if known is not None and not _is_paid(payment):
                payment = holders.get((known[0], charge.provider_ref), payment)
            self._compare_charge(charge, payment, deadline)

    def _compare_stranger(
        self,
        charge: ProviderCharge,
        merchant_id: UUID,
        strangers: dict[UUID, bool],
        deadline: Deadline,
    ) -> None:
        """A charge of another instance, or of a merchant that was lost with its commit: only a
        person can decide, and the first charge of each merchant is enough for that."""
        if charge.outcome.kind is not OutcomeKind.SUCCEEDED:
            return
        if self._foreign_charges == "page" or not strangers[merchant_id]:
            self._report(charge, "no such merchant here", deadline)
            strangers[merchant_id] = True

    def _holders(
        self,
        charges: Sequence[ProviderCharge],
        payments: Mapping[tuple[UUID, UUID], Payment],
        strangers: Mapping[UUID, bool],
        deadline: Deadline,
    ) -> Mapping[tuple[UUID, str], Payment]:
        """The payments of retries under the same client key: one charge, two rows, and the charge
        names the row that was lost or that ended without it."""
        asked = []
        for charge in charges:
            known = ids_of(charge)
            if known is None or known[0] in strangers:
                continue
            payment = payments.get(known)
            # The key of an open row is its own: no retry can have another row under it.
            if payment is None or (payment.status in RESTING and not _holds(payment, charge)):
                asked.append((known[0], charge))
        return self._late_store.holders(asked, self._provider.name, deadline)

    def _compare_charge(
        self, charge: ProviderCharge, payment: Payment | None, deadline: Deadline
    ) -> None:
        has_moved = charge.outcome.kind is OutcomeKind.SUCCEEDED
        if payment is None:
            if has_moved and not (self._foreign_charges == "ignore" and _is_foreign(charge)):
                self._report(charge, "no payment here", deadline)
            elif not has_moved:
                self._keep_unpaid(charge, deadline)
        elif payment.provider != self._provider.name or payment.provider_ref not in (
            None,
            charge.provider_ref,
        ):
            if has_moved:
                self._report(charge, "a second charge", deadline)
        elif (payment.amount_minor, payment.currency) != (charge.amount_minor, charge.currency):
            self._report(charge, "another amount", deadline)
        elif payment.status in RESTING:
            self._compare_resting(charge, payment, deadline)
        elif has_moved:
            self._repair(payment, charge, deadline)

    def _keep_unpaid(self, charge: ProviderCharge, deadline: Deadline) -> None:
        """A charge of a lost row that may be paid yet: a retry under its key takes it over."""
        ids = ids_of(charge)
        if ids is None or charge.key_digest is None or not _may_be_paid(charge):
            return
        self._orphans.keep_unpaid(
            charge,
            provider=self._provider.name,
            merchant_id=ids[0],
            payment_id=ids[1],
            deadline=deadline,
        )

    def _compare_resting(
        self, charge: ProviderCharge, payment: Payment, deadline: Deadline
    ) -> None:
        """The page may be older than the row: only a new look-up may change a settled payment."""
        outcome = charge.outcome
        target = late_target(outcome)
        is_paid_here = payment.status in (Status.SUCCEEDED, Status.REQUIRES_CAPTURE)
        if target is None or not (is_paid_here or outcome.kind is OutcomeKind.SUCCEEDED):
            return  # Ended without money in both books.
        is_other_amount = (
            target is payment.status
            and outcome.amount_capturable == 0
            and outcome.amount_received != payment.amount_captured_minor
        )
        if target is payment.status and not is_other_amount:
            return
        if payment.provider_ref is None and not self._is_taken_back(charge, payment, deadline):
            self._report(charge, f"charged, but {payment.status.value} here", deadline)
        else:
            self._late_store.ask(payment, deadline)

    def _is_taken_back(self, charge: ProviderCharge, payment: Payment, deadline: Deadline) -> bool:
        """Whether the row has its charge again: it was set back by lost commits, and ended unsent."""
        if payment.status not in ENDED_WITHOUT_MONEY or charge.payment_id != payment.id:
            return False
        return self._late_store.take_back(payment, charge.provider_ref, deadline)

    def _repair(self, payment: Payment, charge: ProviderCharge, deadline: Deadline) -> None:
        repaired = self._store.record(payment, charge.outcome, op="sweep", due_in_s=0.0)
        if repaired.status is fact_status(charge.outcome):
            metrics.reconcile_settled_total.labels(outcome=repaired.status.value).inc()
            log.warning(
                "sweep.repaired", extra={"payment_id": payment.id, "was": payment.status.value}
            )

    def _report(self, charge: ProviderCharge, reason: str, deadline: Deadline) -> None:
        merchant_id, payment_id = _ids_told(charge)
        self._late.report_charge(charge, merchant_id, payment_id, reason, deadline)

    # --- Refunds: by creation -------------------------------------------------------------------

    def _compare_refunds(self, items: Sequence[Item], deadline: Deadline) -> None:
        """Our refunds are compared by id; refunds by hand are hints about their charge."""
        refunds = [item for item in items if isinstance(item, ProviderRefund)]
        ours = {refund.provider_ref: ids for refund in refunds if (ids := _refund_ids(refund))}
        statuses = self._late_store.refund_statuses(ours.values(), deadline)
        hints: list[tuple[EventHint, tuple[UUID, UUID] | None]] = []
        for refund in refunds:
            known = ours.get(refund.provider_ref)
            status = statuses.get(known[1]) if known else None
            if status is not None and not contradicts(refund, status):
                continue
            ids = parse_ids(refund.merchant_id, refund.payment_id)
            hints.append((_as_event(refund), ids))
        self._late_store.receive(EVENT_SOURCE, hints, deadline)

    # --- Disputes: by creation ------------------------------------------------------------------

    def _compare_disputes(self, items: Sequence[Item], deadline: Deadline) -> None:
        """Each state of each dispute is a hint about its charge."""
        disputes = [item for item in items if isinstance(item, ProviderDispute)]
        hints = [(_as_event_of(dispute), None) for dispute in disputes if dispute.charge_ref]
        self._late_store.receive(EVENT_SOURCE, hints, deadline)

    # --- Events: by change ----------------------------------------------------------------------

    def _compare_events(self, items: Sequence[Item], deadline: Deadline) -> None:
        """Store relevant events like webhooks; both are applied in the same way."""
        events = [item for item in items if isinstance(item, EventHint)]
        named = [(event, parse_ids(event.merchant_id, event.payment_id)) for event in events]
        payments = self._late_store.payments([ids for _, ids in named if ids], deadline)
        kept = []
        for event, ids in named:
            payment = payments.get(ids) if ids else None
            # Without our metadata, only an object beside the charge can be about one of ours.
            is_possible = ids is not None or event.type in AFTERWARDS
            # Another row may have the charge: the inbox finds that row by the reference.
            is_its_own = payment is not None and payment.provider_ref == event.charge_ref
            if is_possible and is_news(
                event.type, payment.status if is_its_own and payment else None
            ):
                kept.append((event, ids))
        self._late_store.receive(EVENT_SOURCE, kept, deadline)


def _holds(payment: Payment | None, charge: ProviderCharge) -> bool:
    return payment is not None and payment.provider_ref == charge.provider_ref


def _is_paid(payment: Payment | None) -> bool:
    """Whether its money came from another charge: a further charge that names it is an excess,
    independent of the row that has it."""
    return payment is not None and payment.status in (Status.SUCCEEDED, Status.REQUIRES_CAPTURE)


def _tells_of_money(charge: ProviderCharge) -> bool:
    told = (OutcomeKind.SUCCEEDED, OutcomeKind.NOT_EXECUTED)
    return charge.outcome.kind in told or _may_be_paid(charge)


def _may_be_paid(charge: ProviderCharge) -> bool:
    """Whether it moved no money yet, and could by itself or by its payer's act."""
    return charge.outcome.kind in (OutcomeKind.PENDING, OutcomeKind.UNKNOWN)


def _is_foreign(charge: ProviderCharge) -> bool:
    """Whether its metadata has none of our entries: made by another program on the same account."""
    return _ids_told(charge) == (None, None)


def _ids_told(charge: ProviderCharge) -> tuple[UUID | None, UUID | None]:
    """Merchant and payment from our metadata; None where it is not ours."""
    try:
        merchant_id = UUID(charge.merchant_id) if charge.merchant_id else None
    except ValueError:
        merchant_id = None
    return merchant_id, parse_id(charge.payment_id or "", "pay_")


def _refund_ids(refund: ProviderRefund) -> tuple[UUID, UUID] | None:
    """(merchant, movement) of one of our refunds."""
    ids = parse_ids(refund.merchant_id, refund.payment_id)
    movement_id = parse_id(refund.refund_id or "", REFUND_PREFIX)
    return None if ids is None or movement_id is None else (ids[0], movement_id)


def _as_event(refund: ProviderRefund) -> EventHint:
    """A hint with a separate name for each state of the refund in the list."""
    return EventHint(
        event_id=f"sweep.{refund.provider_ref}.{refund.kind.value}",
        type="refund.updated",
        charge_ref=refund.charge_ref,
        payment_id=refund.payment_id,
        merchant_id=refund.merchant_id,
    )


def _as_event_of(dispute: ProviderDispute) -> EventHint:
    return EventHint(
        event_id=f"sweep.{dispute.provider_ref}.{dispute.status}",
        type="charge.dispute.updated",
        charge_ref=dispute.charge_ref,
        payment_id=None,
        merchant_id=None,
    )
