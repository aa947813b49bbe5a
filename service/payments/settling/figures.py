"""The figures of open payments: counts, ages and money at risk, from the database to the gauges."""

from __future__ import annotations

from datetime import UTC, datetime

from service.observability.metrics import catalogue as metrics
from service.payments.settling.late_store import LateStore
from service.payments.settling.store import SettlingStore
from service.payments.settling.sweep_progress import SweepRuns, age_s
from service.resilience.deadline import Deadline

# The statuses in which money may have moved without our knowledge.
AT_RISK = ("sending", "unknown", "needs_review")


class OpenFigures:
    """Refreshes the gauges; remembers the shown currencies, so that each can return to 0."""

    def __init__(self, settling: SettlingStore, late: LateStore, runs: SweepRuns) -> None:
        self._settling = settling
        self._late = late
        self._runs = runs
        # Without any sweep so far, the age grows from here.
        self._began = datetime.now(UTC)
        self._currencies: set[str] = set()

    def refresh(self, deadline: Deadline) -> None:
        """Read the open rows (only those, for any number of closed ones) and set the gauges."""
        figures = self._settling.open_figures(deadline)
        for status in metrics.OPEN_STATUSES:
            count = sum(f.count for f in figures if f.status == status and f.kind == "payment")
            metrics.payments_open.labels(status=status).set(count)
        # Payments for a person have a separate alert; their age would keep this one firing.
        unknown = [figure for figure in figures if figure.status == "unknown"]
        queued = [f for f in figures if f.status == "accepted" and f.kind == "payment"]
        metrics.unknown_oldest_age_seconds.set(max((f.oldest_age_s for f in unknown), default=0))
        metrics.needs_review.set(sum(f.count for f in figures if f.status == "needs_review"))
        metrics.queued_payments.set(sum(figure.count for figure in queued))
        metrics.queued_oldest_age_seconds.set(max((f.oldest_age_s for f in queued), default=0))
        metrics.reconcile_due_oldest_age_seconds.set(max((f.overdue_s for f in figures), default=0))
        metrics.disputes_open.set(self._late.open_disputes(deadline))
        metrics.sweep_age_seconds.set(age_s(self._runs.swept_to(deadline) or self._began))
        self._currencies.update(figure.currency for figure in figures)
        for currency in self._currencies:
            at_risk = [f for f in figures if f.currency == currency and f.status in AT_RISK]
            metrics.money_at_risk_minor.labels(currency=currency).set(
                sum(figure.amount_minor for figure in at_risk)
            )
