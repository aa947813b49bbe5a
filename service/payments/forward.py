"""Sends queued payments once the provider takes them again, a few at first, then more."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Protocol, TypeVar

from service.observability import metrics
from service.payments.handler import PaymentHandler
from service.payments.model import Payment, Status
from service.payments.reconcile import OTHERS_AGAIN_S
from service.payments.settling_store import SettlingStore
from service.payments.store import PaymentStore
from service.providers.base import OutcomeKind, Provider
from service.resilience.deadline import Deadline

log = logging.getLogger(__name__)

# What the provider takes at once after an outage: doubled while all goes well, so that the queue
# does not bring it down a second time.
FIRST_BATCH = 2


Item = TypeVar("Item")


class RunAll(Protocol):
    """Runs a call for each payment (or other item), side by side, and gives back the results in any order."""

    def __call__(self, call: Callable[[Item], bool], payments: Iterable[Item]) -> list[bool]: ...


class Forwarder:
    """Drains the queue with slow start. One in a process; leases keep many processes apart."""

    def __init__(
        self,
        store: PaymentStore,
        settling: SettlingStore,
        handler: PaymentHandler,
        provider: Provider,
        *,
        send_timeout_s: float,
        # As many as are sent at once: what waits for a thread under its lease could outlive it.
        batch_max: int,
    ) -> None:
        self._store = store
        self._settling = settling
        self._handler = handler
        self._provider = provider
        self._send_timeout_s = send_timeout_s
        self._batch_max = batch_max
        self._batch = FIRST_BATCH

    def drain(self, run_all: RunAll, deadline: Deadline) -> int:
        """Send one batch; the number of payments that were due. Raises Busy without a database.

        While the provider is down only what has waited too long is taken, to be ended on time.
        """
        if not self._provider.available:
            self._batch = FIRST_BATCH
            expired = self._settling.lease_queued(self._batch_max, deadline, only_expired=True)
            run_all(self._send, expired)
            return len(expired)
        queued = self._settling.lease_queued(self._batch, deadline)
        if queued:
            all_taken = all(run_all(self._send, queued))
            self._batch = min(self._batch * 2, self._batch_max) if all_taken else FIRST_BATCH
        return len(queued)

    def _send(self, payment: Payment) -> bool:
        """One queued payment under its lease; False where the provider did not take it."""
        deadline = Deadline.after(self._send_timeout_s)
        if payment.is_expired:
            self._store.give_up(payment, Status.EXPIRED, "not sent before expires_at", deadline)
            log.warning("payment.expired", extra={"payment_id": payment.id})
            return True
        if payment.provider != self._provider.name:
            self._settling.postpone(payment, OTHERS_AGAIN_S, deadline)
            log.warning("payment.of_another_provider", extra={"payment_id": payment.id})
            return True
        sent, outcome = self._handler.execute(payment, deadline)
        if sent.is_terminal or sent.status is Status.REQUIRES_CAPTURE:
            metrics.reconcile_settled_total.labels(outcome=sent.status.value).inc()
        return outcome.kind not in (OutcomeKind.NOT_EXECUTED, OutcomeKind.UNKNOWN)
