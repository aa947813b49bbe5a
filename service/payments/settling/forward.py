"""Sends queued payments when the provider accepts calls again, a few at first, then more."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import replace
from time import monotonic

from service.errors import Busy
from service.ids import (
    parse_id,
)
from service.observability.metrics import catalogue as metrics
from service.payments.charge.handler import PaymentHandler
from service.payments.charge.model import LostCharge, Payment, Status
from service.payments.charge.store import PaymentStore
from service.payments.leases.run_all import RunAll
from service.payments.settling.lease_store import LeaseStore
from service.payments.settling.orphans import OrphanStore
from service.payments.settling.parking import park
from service.payments.settling.queue_books import QueueBooks
from service.payments.settling.reconcile import OTHERS_AGAIN_S, REFUSED_AGAIN_S
from service.payments.settling.sweep_unread import UnreadStore
from service.providers.base import OutcomeKind, ProviderCharge
from service.providers.later import LaterProvider
from service.resilience.deadline import Deadline

log = logging.getLogger(__name__)

# The batch size after an outage: doubled while calls succeed, so that the queue does not overload
# the provider again.
FIRST_BATCH = 2
# The fence of a row without a lease since its claim.
NEVER_LEASED = 1
# Expired payments that may have been charged before our rows were rolled back wait for the books.
EXPIRED_AGAIN_S = 5.0
# A payment whose part of the provider's books is not read yet.
BOOKS_AGAIN_S = 2.0
# What a lease has to spare beside the sending of its payment.
BOOKS_SLOW_S = 2.0
# The longest pause that a provider may ask for before its books are read again.
BOOKS_PAUSE_MAX_S = 60.0


class Forwarder:
    """Drains the queue with slow start. One in a process; leases keep many processes apart."""

    def __init__(
        self,
        store: PaymentStore,
        leases: LeaseStore,
        orphans: OrphanStore,
        handler: PaymentHandler,
        provider: LaterProvider,
        unread: UnreadStore,
        *,
        send_timeout_s: float,
        # The number of concurrent sends: a leased payment that waits for a thread could outlive its lease.
        batch_max: int,
        # Our rows may be older than the provider's: no payment is sent before a comparison.
        is_recovering: Callable[[], bool] = lambda: False,
    ) -> None:
        self._store = store
        self._leases = leases
        self._orphans = orphans
        self._handler = handler
        self._provider = provider
        self._send_timeout_s = send_timeout_s
        self._batch_max = batch_max
        self._batch = FIRST_BATCH
        self._is_recovering = is_recovering
        self._books = QueueBooks(provider)
        # Of the present batch, what the sweep has found under the same keys.
        self._lost: dict[str, LostCharge] = {}
        self._unread = unread
        # Of the present batch.
        self._unreadable: list[ProviderCharge] = []

    def drain(self, run_all: RunAll, deadline: Deadline) -> int:
        """Send one batch; the number of payments that were due. Raises Busy without a database.

        While the provider is down, only expired payments are leased, to be ended in time.
        """
        if self._is_recovering():
            # Our rows may be older than the provider's books: a whole sweep must compare them first.
            return 0
        if not self._provider.available:
            self._batch = FIRST_BATCH
            expired = self._leases.lease_queued(self._batch_max, deadline, only_expired=True)
            self._lost = self._orphans.lost_charges(expired, self._provider.name, deadline)
            run_all(self._end_unseen, expired)
            return len(expired)
        queued = self._leases.lease_queued(self._batch, deadline)
        if queued:
            seen = self._read_books(queued)
            all_taken = seen is not None and all(run_all(self._send_or_park, seen))
            self._batch = min(self._batch * 2, self._batch_max) if all_taken else FIRST_BATCH
        return len(queued)

    def _read_books(self, queued: list[Payment]) -> list[Payment] | None:
        """Those of which it is known what the provider has; the others are given back. None: the
        provider's books cannot be read, and all are given back."""
        unseen = [payment for payment in queued if self._needs_books(payment)]
        if not unseen:
            return queued
        begun_s = monotonic()
        try:
            within = Deadline.after(self._send_timeout_s)
            self._lost = self._orphans.lost_charges(unseen, self._provider.name, within)
            self._unreadable = self._unread.about(unseen, within)
            pages = self._books.refresh(unseen)
        except Busy as error:
            log.warning("queue.books_not_read", extra={"detail": error.detail})
            pause_s = min(max(REFUSED_AGAIN_S, error.retry_after_s), BOOKS_PAUSE_MAX_S)
            self._give_back(queued, pause_s)
            return None
        if pages > 1 and monotonic() - begun_s > BOOKS_SLOW_S:
            # The lease must outlast the sending: the pages are kept, and the rows leased anew.
            self._give_back(queued, 0.0)
            return []
        hidden = {payment.id for payment in unseen if not self._books.covers(payment)}
        self._give_back([one for one in queued if one.id in hidden], BOOKS_AGAIN_S)
        return [payment for payment in queued if payment.id not in hidden]

    def _give_back(self, payments: Iterable[Payment], due_in_s: float) -> None:
        deadline = Deadline.after(self._send_timeout_s)
        for payment in payments:
            self._leases.postpone(payment, due_in_s, deadline)

    def _needs_books(self, payment: Payment) -> bool:
        """Whether it has a reference: a confirm by the same reference cannot charge twice."""
        is_to_be_confirmed = payment.promised and not payment.is_expired
        has_reference = payment.provider_ref is not None and is_to_be_confirmed
        # A payment with an earlier one under its key is still compared.
        has_reference = has_reference and payment.books_from is None
        return payment.provider == self._provider.name and not has_reference

    def _end_unseen(self, payment: Payment) -> bool:
        """End expired payments while the books are unreadable, except those that may have been sent."""
        deadline = Deadline.after(self._send_timeout_s)
        if _may_have_been_sent(payment) or payment.key_digest in self._lost:
            self._leases.postpone(payment, EXPIRED_AGAIN_S, deadline)
        else:
            self._expire(payment, deadline)
        return True

    def _send_or_park(self, payment: Payment) -> bool:
        """Like `_send`; a payment that raises is parked and does not stop the rest."""
        try:
            return self._send(payment)
        except Busy:
            raise
        except Exception as error:  # noqa: BLE001 - told of by `park`
            pause_s = park(error, payment.doubt_age_s, payment_id=payment.id)
            self._leases.postpone(payment, pause_s, Deadline.after(self._send_timeout_s))
            return True

    def _send(self, payment: Payment) -> bool:
        """Send one queued payment under its lease; False where the provider did not accept it."""
        deadline = Deadline.after(self._send_timeout_s)
        if payment.provider != self._provider.name:
            return self._leave_to_others(payment, deadline)
        lost = self._lost.get(payment.key_digest or "")
        if lost is not None:
            return self._adopt_lost(payment, lost, deadline)
        found = self._found(payment, deadline)
        if found is not None and not found.provider_ref:
            # In the provider's list, and not even its id can be read: neither sent nor ended.
            self._leases.postpone(payment, OTHERS_AGAIN_S, deadline)
            log.error("queue.held_by_unreadable", extra={"payment_id": payment.id})
            return True
        if found is not None and (
            found.outcome.kind is not OutcomeKind.NOT_EXECUTED
            or found.outcome.error is not None
            or payment.is_expired
            or not payment.promised
        ):
            return self._adopt(payment, found.provider_ref, deadline)
        if not payment.promised:
            self._withdraw(payment, deadline)
            return True
        if payment.is_expired:
            self._expire(payment, deadline)
            return True
        if found is not None:
            # Unconfirmed by the provider's own books: confirm this one.
            payment = replace(payment, provider_ref=found.provider_ref)
        elif payment.is_spent:
            # The saved answer to its key is an error, and the books lack it: no money can move.
            again = self._store.begin_series(payment, deadline)
            if again is None:
                return True
            payment = again
        sent, outcome = self._handler.execute(payment, deadline)
        if sent.is_terminal or sent.status is Status.REQUIRES_CAPTURE:
            metrics.reconcile_settled_total.labels(outcome=sent.status.value).inc()
        return outcome.kind not in (OutcomeKind.NOT_EXECUTED, OutcomeKind.UNKNOWN)

    def _found(self, payment: Payment, deadline: Deadline) -> ProviderCharge | None:
        """What the books have of it; of an earlier payment under the same key only what moved."""
        found = self._books.find(payment) or self._parked(payment)
        if found is None or found.payment_id == payment.id:
            return found
        if found.outcome.kind is not OutcomeKind.NOT_EXECUTED:
            return found
        earlier = parse_id(found.payment_id or "", "pay_")
        is_here = earlier and self._store.get(payment.merchant_id, earlier, deadline)
        return None if is_here else found

    def _parked(self, payment: Payment) -> ProviderCharge | None:
        """A charge that is told to be this payment's and could not be read by the sweep."""
        for one in self._unreadable:
            has_key = one.key_digest is not None and one.key_digest == payment.key_digest
            if has_key or one.payment_id == payment.id:
                return one
        return None

    def _leave_to_others(self, payment: Payment, deadline: Deadline) -> bool:
        if payment.is_expired and not _may_have_been_sent(payment):
            self._expire(payment, deadline)
            return True
        self._leases.postpone(payment, OTHERS_AGAIN_S, deadline)
        log.warning("payment.of_another_provider", extra={"payment_id": payment.id})
        return True

    def _adopt_lost(self, payment: Payment, lost: LostCharge, deadline: Deadline) -> bool:
        """The key of this payment made a charge before, by a row that is lost: no other is made."""
        if (lost.amount_minor, lost.currency) == (payment.amount_minor, payment.currency):
            return self._adopt(payment, lost.provider_ref, deadline)
        reason = f"its key made another charge before: {lost.provider_ref}"
        if payment.promised:
            self._store.give_up(payment, Status.NOT_EXECUTED, reason, deadline)
        else:
            self._withdraw(payment, deadline)
        log.error("payment.key_made_another_charge", extra={"payment_id": payment.id})
        return True

    def _adopt(self, payment: Payment, provider_ref: str, deadline: Deadline) -> bool:
        """Our record of this charge is lost: the reconciler looks it up at once."""
        adopted = self._store.adopt(payment, provider_ref, deadline)
        if adopted is None:
            # Another payment has this charge: two of ours claim it, and neither is sent again.
            self._leases.postpone(payment, OTHERS_AGAIN_S, deadline)
        log.error(
            "payment.found_in_books",
            extra={
                "payment_id": payment.id,
                "provider_ref": provider_ref,
                "adopted": adopted is not None,
            },
        )
        return True

    def _withdraw(self, payment: Payment, deadline: Deadline) -> None:
        """It has no promise: it ends, and its key is free again."""
        self._store.withdraw(
            payment, "promised to nobody", deadline, spent=self._provider.two_phase
        )
        log.warning("payment.withdrawn", extra={"payment_id": payment.id})

    def _expire(self, payment: Payment, deadline: Deadline) -> None:
        self._store.give_up(payment, Status.EXPIRED, "not sent before expires_at", deadline)
        log.warning("payment.expired", extra={"payment_id": payment.id})


def _may_have_been_sent(payment: Payment) -> bool:
    """Whether its row shows more than a claim and this lease."""
    return payment.fence > NEVER_LEASED + 1 or bool(payment.attempts) or not payment.promised
