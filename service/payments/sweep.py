"""The reverse sweep: compares the provider's books with ours, and repairs or reports the rest.

A database failover can lose the newest commits; then a charge is known to the provider alone.
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta
from uuid import UUID

from service.observability import metrics
from service.payments.model import Payment, Status, fact_status, parse_id
from service.payments.settling_store import SettlingStore
from service.payments.store import PaymentStore
from service.providers.base import OutcomeKind, Provider, ProviderCharge
from service.resilience.deadline import Deadline

log = logging.getLogger(__name__)

EVERY_S = 300.0
# Clocks differ and commits are late: each sweep reads an hour again that the last one read.
OVERLAP = timedelta(hours=1)
# A sweep of a busy hour reads many pages; past this its lease is another's.
LEASE_S = 240.0
_MONEY_MOVED = frozenset({Status.SUCCEEDED, Status.REQUIRES_CAPTURE})


class Sweep:
    """Looks from the provider's side for money that our books do not explain."""

    def __init__(self, store: PaymentStore, settling: SettlingStore, provider: Provider) -> None:
        self._store = store
        self._settling = settling
        self._provider = provider

    def run_if_due(self, deadline: Deadline, *, every_s: float = EVERY_S) -> bool:
        """Sweep once where no other process has lately; True if swept. Raises Busy on an outage,
        and then the next sweep begins where the last whole one ended."""
        # Of each provider's books one: else what one has read would pass for read in the other's.
        name = f"sweep {self._provider.name}"
        run = self._settling.lease_run(name, every_s=every_s, lease_s=LEASE_S, deadline=deadline)
        if run is None:
            return False
        began = datetime.now(UTC)
        swept_to = run.detail.get("swept_to")
        since = datetime.fromisoformat(swept_to) if swept_to else began
        compared = 0
        for charge in self._provider.list_since(since - OVERLAP, deadline):
            self._compare(charge, deadline)
            compared += 1
        self._settling.end_run(run, {"swept_to": began.isoformat(), "compared": compared}, deadline)
        log.info("sweep.done", extra={"compared": compared})
        return True

    def _compare(self, charge: ProviderCharge, deadline: Deadline) -> None:
        if charge.outcome.kind is not OutcomeKind.SUCCEEDED:
            return  # No money moved; ours will find out by itself.
        merchant_id, payment_id = _ids(charge)
        payment = None
        if merchant_id and payment_id:
            payment = self._store.get(merchant_id, payment_id, deadline)
        if payment is None:
            self._report(charge, merchant_id, payment_id, "no payment here", deadline)
        elif payment.provider != self._provider.name or payment.provider_ref not in (
            None,
            charge.provider_ref,
        ):
            self._report(charge, merchant_id, payment_id, "a second charge", deadline)
        elif (payment.amount_minor, payment.currency) != (charge.amount_minor, charge.currency):
            self._report(charge, merchant_id, payment_id, "another amount", deadline)
        elif payment.status not in _MONEY_MOVED:
            self._repair(payment, charge, deadline)

    def _repair(self, payment: Payment, charge: ProviderCharge, deadline: Deadline) -> None:
        if payment.is_terminal:
            reason = f"charged, but {payment.status.value} here"
            self._report(charge, payment.merchant_id, payment.payment_id, reason, deadline)
            return
        repaired = self._store.record(payment, charge.outcome, op="sweep", due_in_s=0.0)
        if repaired.status is fact_status(charge.outcome):
            metrics.reconcile_settled_total.labels(outcome=repaired.status.value).inc()
            log.warning(
                "sweep.repaired", extra={"payment_id": payment.id, "was": payment.status.value}
            )

    def _report(
        self,
        charge: ProviderCharge,
        merchant_id: UUID | None,
        payment_id: UUID | None,
        reason: str,
        deadline: Deadline,
    ) -> None:
        is_new = self._settling.add_orphan(
            charge,
            provider=self._provider.name,
            merchant_id=merchant_id,
            payment_id=payment_id,
            reason=reason,
            deadline=deadline,
        )
        if is_new:
            metrics.sweep_orphans_total.inc()
            log.error(
                "sweep.orphan",
                extra={"provider_ref": charge.provider_ref, "reason": reason},
            )


def _ids(charge: ProviderCharge) -> tuple[UUID | None, UUID | None]:
    """Merchant and payment as our metadata names them; None where it is not ours."""
    try:
        merchant_id = UUID(charge.merchant_id) if charge.merchant_id else None
    except ValueError:
        merchant_id = None
    return merchant_id, parse_id(charge.payment_id or "", "pay_")
