"""The figures of open payments: counts, ages and money at risk, from the database to the gauges."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from service.database.pool.pool import ConnectionPool, Statement
from service.observability.metrics import catalogue as metrics
from service.payments.charge.statements import OPEN_PAYMENTS
from service.payments.settling.late_store import LateStore
from service.payments.settling.sweep_progress import SweepRuns, age_s
from service.resilience.deadline import Deadline

# The statuses in which money may have moved without our knowledge.
AT_RISK = ("sending", "unknown", "needs_review")

_OPEN_FIGURES = Statement(
    "open_figures",
    f"""
    SELECT kind, status, currency, count(*), sum(amount)::bigint,
           coalesce(max(extract(epoch FROM now() - coalesce(unknown_since, created_at))), 0)::float8,
           coalesce(max(extract(epoch FROM now() - due_at)) FILTER (WHERE due_at < now()), 0)::float8
    FROM (
        SELECT 'payment' AS kind, status, currency, amount, unknown_since, created_at, due_at
        FROM {OPEN_PAYMENTS} AS p
        UNION ALL
        SELECT m.kind, m.status, p.currency, m.amount, m.unknown_since, m.created_at, m.due_at
        FROM movements m JOIN payments p USING (merchant_id, payment_id)
        WHERE m.status NOT IN ('succeeded', 'declined')
    ) AS open
    GROUP BY kind, status, currency
    """,
)


@dataclass(frozen=True, slots=True)
class OpenFigure:
    """The open rows of one kind, status and currency, as one row of the figures."""

    # payment, capture, void or refund.
    kind: str
    status: str
    currency: str
    count: int
    amount_minor: int
    oldest_age_s: float
    overdue_s: float


def open_figures(pool: ConnectionPool, deadline: Deadline) -> list[OpenFigure]:
    """Counts, sums and ages of all open rows; reads only those, for any number of closed ones."""
    return [OpenFigure(*row) for row in pool.run(_OPEN_FIGURES, {}, deadline)]


class OpenFigures:
    """Refreshes the gauges; remembers the shown currencies, so that each can return to 0."""

    def __init__(self, pool: ConnectionPool, late: LateStore, runs: SweepRuns) -> None:
        self._pool = pool
        self._late = late
        self._runs = runs
        # Without any sweep so far, the age grows from here.
        self._began = datetime.now(UTC)
        self._currencies: set[str] = set()

    def refresh(self, deadline: Deadline) -> None:
        """Read the open rows (only those, for any number of closed ones) and set the gauges."""
        figures = open_figures(self._pool, deadline)
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
