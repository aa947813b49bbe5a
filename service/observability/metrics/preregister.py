"""Preregisters counters at 0: Prometheus sees growth only from a value that it has read before.

A series that appears with its first event is first read as 1, and `increase` sees no growth: the
first timeout of an incident would be missing. So each process creates every series that it may
count when it starts.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping

from prometheus_client import Counter

from service.observability.metrics import catalogue as metrics

Words = Iterable[str]


def begin_pool() -> None:
    """Series of a process with a database pool."""
    _begin(metrics.db_pool_refusals_total, reason=metrics.POOL_REFUSAL_REASONS)
    _begin(metrics.db_pool_connections_discarded_total, reason=metrics.DISCARD_REASONS)
    _begin(metrics.db_errors_total, **{"class": metrics.DB_ERROR_CLASSES})


def begin_provider(name: str) -> None:
    """Series of a process that calls this provider."""
    provider, operations = (name,), metrics.OPERATIONS
    _begin(
        metrics.provider_calls_total,
        provider=provider,
        operation=operations,
        result=metrics.CALL_RESULTS,
    )
    _begin(
        metrics.provider_timeouts_total,
        provider=provider,
        operation=operations,
        kind=metrics.TIMEOUT_KINDS,
    )
    _begin(
        metrics.provider_connection_errors_total,
        provider=provider,
        kind=metrics.CONNECTION_ERROR_KINDS,
    )
    _begin(metrics.provider_retries_total, provider=provider, reason=metrics.RETRY_REASONS)
    _begin(metrics.breaker_refusals_total, provider=provider)
    _begin(metrics.breaker_open_seconds_total, provider=provider)
    for from_state, to_state in itertools.permutations(metrics.BREAKER_STATES, 2):
        metrics.breaker_transitions_total.labels(name, from_state, to_state)
    _begin(metrics.payments_total, provider=provider, outcome=metrics.PAYMENT_OUTCOMES)


def begin_answers(routes: Iterable[tuple[str, str]]) -> None:
    """Series of a plane: `routes` are its templates and methods."""
    for route, method in routes:
        # The statuses that alerts use; each route's other answers appear when they occur.
        for status in ("500", "503"):
            metrics.http_requests_total.labels(route, method, status)
    _begin(metrics.requests_shed_total, reason=metrics.SHED_REASONS)
    _begin(metrics.idempotent_requests_total, result=metrics.IDEMPOTENCY_RESULTS)
    _begin(metrics.webhooks_received_total, result=metrics.WEBHOOK_RESULTS)


def begin_settling() -> None:
    """Series of the reconciler."""
    _begin(metrics.reconcile_settled_total, outcome=metrics.PAYMENT_OUTCOMES)
    _begin(metrics.webhook_deliveries_total, result=metrics.DELIVERY_RESULTS)
    _begin(metrics.rows_removed_total, table=metrics.REMOVED_TABLES)


def begin_drills(names: Iterable[str]) -> None:
    """Series of a process that runs drills; no fault is on when it starts."""
    _begin(metrics.drill_runs_total, drill=names, verdict=metrics.VERDICTS)
    for fault in metrics.FAULTS:
        metrics.simulation_active.labels(fault).set(0)


def _begin(counter: Counter, **words: Words) -> None:
    """Create every series of a counter: all combinations of its label values."""
    sets: Mapping[str, Words] = words
    for one in itertools.product(*(list(sets[label]) for label in sets)):
        counter.labels(**dict(zip(sets, one, strict=True)))
