"""The reverse sweep: compares the provider's books with ours, and repairs or reports the rest.

A database failover can lose the newest commits; then only the provider knows a charge. Later changes
of a settled payment also happen at the provider first. Four lists are read, oldest slice first:
charges, refunds, disputes, and events, which contain every change.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Literal
from uuid import UUID

from service.errors import Busy, ProviderUnavailable
from service.ids import (
    parse_id,
)
from service.observability.metrics import catalogue as metrics
from service.payments.charge.model import (
    Payment,
    Status,
    fact_status,
)
from service.payments.charge.store import PaymentStore
from service.payments.movements.model import REFUND_PREFIX
from service.payments.settling.late import LateFacts, ids_of, parse_ids
from service.payments.settling.late_facts import (
    AFTERWARDS,
    RESTING,
    contradicts,
    is_news,
    late_target,
)
from service.payments.settling.late_store import LateStore
from service.payments.settling.store import BackgroundRun, SettlingStore
from service.payments.settling.sweep_progress import Progress, SweepRuns
from service.payments.settling.sweep_unread import Parked, UnreadStore
from service.providers.base import OutcomeKind, ProviderCharge
from service.providers.later import (
    EVENT_SOURCE,
    Answered,
    CursorLost,
    EventHint,
    Feed,
    FeedMissing,
    Item,
    LaterProvider,
    Page,
    PageUnreadable,
    ProviderDispute,
    ProviderRefund,
    Slice,
)
from service.resilience.deadline import Deadline

log = logging.getLogger(__name__)

EVERY_S = 300.0
# The time of one list before the next has its turn: a long list delays no other for longer.
TURN_S = 20.0
# One page, its comparison and its checkpoint.
PAGE_S = 15.0
# The lease covers a page and its comparison; the checkpoint after each page renews it.
LEASE_S = 60.0
# The pause after an unreadable page; longer at the provider's request.
FAILED_AGAIN_S = 10.0
FAILED_AGAIN_MAX_S = 300.0
# The unread parts of a list before the list counts as unreadable.
UNREAD_SLICES_MAX = 100
# Unread objects that are looked at again in one round.
LOOKED_AT_AGAIN = 5
# How far back the first sweep of a list reads.
FIRST_BACK = timedelta(days=30)
# A run that is done once.
NEVER_S = 10 * 365 * 86_400.0

ForeignCharges = Literal["page", "ignore"]


class Sweep:
    """Searches the provider's books for money that our books do not explain."""

    def __init__(
        self,
        store: PaymentStore,
        settling: SettlingStore,
        late: LateFacts,
        late_store: LateStore,
        runs: SweepRuns,
        unread: UnreadStore,
        provider: LaterProvider,
        *,
        foreign_charges: ForeignCharges = "ignore",
        first_back: timedelta = FIRST_BACK,
    ) -> None:
        self._store = store
        self._settling = settling
        self._late = late
        self._late_store = late_store
        self._runs = runs
        self._provider = provider
        self._unread = unread
        self._foreign_charges = foreign_charges
        self._first_back = first_back
        # Whether this process knows that no list has an older part left to be read.
        self._is_all_older_read = False
        self._compare: Mapping[Feed, Callable[[Sequence[Item], Deadline], None]] = {
            Feed.CHARGES: self._compare_charges,
            Feed.REFUNDS: self._compare_refunds,
            Feed.DISPUTES: self._compare_disputes,
            Feed.EVENTS: self._compare_events,
        }

    def run_if_due(self, deadline: Deadline, *, every_s: float = EVERY_S) -> bool:
        """Give each due list a turn; True if one was read. Raises Busy on an outage; each list
        then continues after its last compared page."""
        is_swept = False
        # The same time for each list, independent of the earlier ones.
        turn_s = min(TURN_S, deadline.remaining_s())
        failure: Busy | None = None
        turns: list[Callable[[Deadline], bool]] = [
            *(partial(self._sweep, feed, every_s) for feed in Feed),
            self._look_again,
        ]
        for turn in turns:
            try:
                is_swept |= turn(Deadline.after(turn_s))
            except Busy as error:
                # An unreadable list must not block the others.
                failure = failure or error
        if failure is not None:
            raise failure
        return self._sweep_older(Deadline.after(turn_s)) or is_swept

    def _sweep(self, feed: Feed, every_s: float, deadline: Deadline) -> bool:
        run = self._lease(self._runs.name(feed), every_s)
        if run is None:
            return False
        progress = Progress.of(run.detail, datetime.now(UTC), feed)
        if progress.swept_to is None:
            self._is_all_older_read = False
        return self._read(run, feed, progress, deadline)

    def _sweep_older(self, deadline: Deadline) -> bool:
        """Read the part older than the first sweep: oldest first, after all lists had their turns."""
        if self._is_all_older_read:
            return False
        ready, is_any_left = self._runs.older(Deadline.after(PAGE_S))
        self._is_all_older_read = not is_any_left
        for feed, older_until in ready.items():
            run = self._lease(self._runs.older_name(feed), NEVER_S)
            if run is not None:
                older = Progress.of_older(run.detail, older_until, self._first_back, feed)
                return self._read(run, feed, older, deadline)
        return False

    def _lease(self, name: str, every_s: float) -> BackgroundRun | None:
        return self._settling.lease_run(
            name, every_s=every_s, lease_s=LEASE_S, deadline=Deadline.after(PAGE_S)
        )

    def _read(self, run: BackgroundRun, feed: Feed, progress: Progress, deadline: Deadline) -> bool:
        try:
            while not progress.is_done:
                # A separate time limit: the end of a turn must not fail its last page.
                within = Deadline.after(PAGE_S)
                progress = self._step(feed, progress, within)
                if deadline.expired or progress.is_done:
                    break
                if not self._runs.save(run, progress, LEASE_S, within):
                    return True  # Another process has the lease, with our committed progress.
        except FeedMissing:
            log.warning("sweep.list_missing", extra={"feed": feed.value})
            return self._end(run, feed, _passed(progress), Deadline.after(PAGE_S))
        except Busy as error:
            if not isinstance(error, Answered):
                progress = progress.with_smaller_pages()
            pause_s = min(max(FAILED_AGAIN_S, error.retry_after_s), FAILED_AGAIN_MAX_S)
            self._runs.save(run, progress, pause_s, Deadline.after(PAGE_S))
            raise
        if progress.is_done:
            return self._end(run, feed, progress, Deadline.after(PAGE_S))
        self._runs.save(run, progress, 0.0, Deadline.after(PAGE_S))
        return True

    def _end(self, run: BackgroundRun, feed: Feed, progress: Progress, deadline: Deadline) -> bool:
        self._settling.end_run(run, progress.detail(), deadline)
        log.info("sweep.done", extra={"feed": feed.value, "compared": progress.compared})
        return True

    # --- Pages, and what of them cannot be read ------------------------------------------------

    def _step(self, feed: Feed, progress: Progress, deadline: Deadline) -> Progress:
        """Compare one page; where it cannot be read, ask for less, and leave out the least."""
        try:
            page = self._provider.page(feed, progress.slice, deadline)
        except (PageUnreadable, CursorLost) as error:
            return self._without(feed, progress, error.detail, deadline)
        self._take_page(feed, page, progress.slice, deadline)
        after = progress.past(page, len(page.items) + len(page.unreadable))
        if after.is_endless:
            log.error("sweep.endless", extra={"feed": feed.value, "read": after.in_slice})
            return self._without(feed, progress, "The list does not end.", deadline)
        return after

    def _take_page(self, feed: Feed, page: Page, part: Slice, deadline: Deadline) -> None:
        """Compare what can be read, and park the rest."""
        self._compare[feed](page.items, deadline)
        if page.unreadable:
            told = [parse_ids(one.merchant_id, one.payment_id) for one in page.unreadable]
            known = self._late_store.payments([ids for ids in told if ids], deadline)
            self._unread.park(feed, page.unreadable, part, set(known), deadline)

    def _without(self, feed: Feed, progress: Progress, reason: str, deadline: Deadline) -> Progress:
        """Half of the slice; its least part is parked, unless the provider reads out nothing."""
        if not progress.is_narrowest:
            return progress.again_narrower()
        if self._unread.slices(feed, deadline) >= UNREAD_SLICES_MAX:
            raise ProviderUnavailable("Too many parts of the provider's list cannot be read.")
        # A list that cannot be read at its newest end either is an outage, and no odd object.
        now = datetime.now(UTC)
        newest = self._provider.page(feed, Slice(now, now + timedelta(minutes=10)), deadline)
        if newest.after is not None and not newest.items:
            raise ProviderUnavailable("The provider's list does not end.")
        self._unread.park_slice(feed, progress.slice, reason, deadline)
        return progress.skipped()

    def _look_again(self, _deadline: Deadline) -> bool:
        """Look again at a few of the objects that could not be read."""
        parked = self._unread.take(LOOKED_AT_AGAIN, Deadline.after(PAGE_S))
        for one in parked:
            within = Deadline.after(PAGE_S)
            try:
                is_read = self._is_read(one, within)
            except Answered:
                is_read = False
            if is_read:
                self._unread.drop(one, Deadline.after(PAGE_S))
                log.warning("sweep.read_at_last", extra={"feed": one.feed, "mark": one.mark})
            else:
                metrics.rows_parked_total.inc()
        return bool(parked)

    def _is_read(self, parked: Parked, deadline: Deadline) -> bool:
        """Whether the object, or all of its slice, could be read and compared by now."""
        if parked.provider_ref is not None:
            items = self._provider.read_again(parked.feed, parked.provider_ref, deadline)
            self._compare[parked.feed](items, deadline)
            return True
        part: Slice | None = Slice(parked.since, parked.until)
        while part is not None:
            page = self._provider.page(parked.feed, part, deadline)
            self._take_page(parked.feed, page, part, deadline)
            if any(one.mark == parked.mark for one in page.unreadable):
                return False
            part = None if page.after is None else replace(part, after=page.after)
            if part is not None and deadline.expired:
                return False
        return True

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
        self._settling.keep_unpaid(
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
        if payment.provider_ref is None:
            self._report(charge, f"charged, but {payment.status.value} here", deadline)
        else:
            self._late_store.ask(payment, deadline)

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


def _passed(progress: Progress) -> Progress:
    """Mark a list that this provider does not have as done."""
    return replace(progress, position=progress.began, swept_to=progress.began)


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
