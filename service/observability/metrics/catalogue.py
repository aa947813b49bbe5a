"""The catalogue: every metric of the service, with its meaning and the values of its labels.

Dashboards, alert rules and CloudWatch are written against these names (prefix `holdfast_`), and a
test compares them. Bind labels once (`x = metrics.payments_total.labels(...)`), count the moment it
happens, never from a signal handler: the client's lock is not re-entrant.
"""

from __future__ import annotations

from typing import Literal

from prometheus_client import Counter, Gauge, Histogram

# Imported before the first metric is created: it selects the storage of the values.
from service.observability.metrics import slots as slots

NAMESPACE = "holdfast"

# --- The closed sets: a label never holds a merchant, a payment, a path as typed or an error's text.

OPERATIONS = ("prepare", "confirm", "look_up", "capture", "cancel", "refund", "list")
PAYMENT_OUTCOMES = (
    *("accepted", "sending", "succeeded", "requires_capture", "requires_action", "declined"),
    *("unknown", "not_executed", "needs_review", "canceled", "expired"),
)
OPEN_STATUSES = (
    *("accepted", "sending", "requires_capture", "requires_action", "unknown", "needs_review"),
)
CALL_RESULTS = ("succeeded", "pending", "declined", "not_executed", "unknown", "refused")
IDEMPOTENCY_RESULTS = ("new", "replayed", "in_flight", "mismatch")
SHED_REASONS = (
    *("queue_full", "rate_limited", "bulkhead_full", "db_pool_exhausted"),
    *("database_unavailable", "provider_unavailable", "deadline_exceeded", "draining"),
)
TIMEOUT_KINDS = ("connect_timeout", "timeout", "deadline")
CONNECTION_ERROR_KINDS = (
    *(
        "refused",
        "dns",
        "tls",
        "reset",
        "truncated",
        "garbage",
        "too_large",
        "mismatch",
        "internal",
    ),
)
# The kinds of rows that retention removes: a fixed list, independent of table names.
REMOVED_TABLES = ("inbox", "outbox", "drills", "keys")
RETRY_REASONS = ("not_executed", "http_429", "http_409", "unknown")
BREAKER_STATES = ("closed", "half_open", "open")
POOL_REFUSAL_REASONS = ("waiters_full", "closed", "deadline", "unreachable")
DISCARD_REASONS = ("broken", "lifetime", "evicted", "leaked", "closed")
DB_ERROR_CLASSES = (
    *("connection", "timeout", "serialization", "integrity", "read_only", "shutdown", "other"),
)
WEBHOOK_RESULTS = ("stored", "duplicate", "bad_signature", "ignored")
DELIVERY_RESULTS = ("delivered", "retried", "given_up")
FAULTS = ("payment_timeout", "connection_error", "pool_exhaustion", "other")
VERDICTS = ("held", "broke", "inconclusive", "aborted", "refused")
# The targets of the SLOs; deploy/prometheus/rules/slo.yml turns them into burn rates.
SLO_TARGETS = {
    "truthful_answers": 0.9995,
    "quick_answers": 0.99,
    "settled_in_time": 0.999,
    "invariants": 1.0,
}

# --- Buckets. Edges where a promise is made: 0.5 s (pool wait, our own share), 1 s (connect), 5 s
# (the provider's deadline, with an edge on either side to separate a late answer from a timeout),
# 10 s (a client's timeout). One more edge above 0.5 and above 5.1 s: a timeout that a busy machine
# delivers a little late must not appear as a percentile of 1 s or of 10 s.

_ANSWER_S = (0.01, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_REQUEST_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 4.9, 5.0, 5.1, 6.0, 10.0)
_PROVIDER_S = (0.025, 0.05, 0.1, 0.2, 0.35, 0.5, 1.0, 2.0, 3.5, 4.9, 5.0, 5.1, 6.0, 10.0)
_POOL_S = (0.0001, 0.0005, 0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 0.6, 1.0, 5.0, 10.0)
# Few, since there are many statements and each has all of these.
_STATEMENT_S = (0.001, 0.005, 0.05, 0.5, 1.0, 5.0, 10.0)
_CHECK_S = (0.005, 0.05, 0.5, 1.0, 5.0, 10.0)

# How a gauge is aggregated over an instance's processes. A process's values end with it.
_Mode = Literal["livesum", "livemin", "livemostrecent", "liveall"]
_SUM: _Mode = "livesum"
_MIN: _Mode = "livemin"
# A fact about the whole instance: the newest measurement of any process.
_LAST: _Mode = "livemostrecent"
# One series a worker, with the label `worker` (the slot: web-0, web-1; a bounded set).
_EACH: _Mode = "liveall"


def _counter(name: str, tells: str, *labels: str) -> Counter:
    return Counter(name, tells, labels, namespace=NAMESPACE)


def _gauge(name: str, tells: str, *labels: str, over_workers: _Mode) -> Gauge:
    # The mode matters for the files of several processes only; a lone process reports its value.
    return Gauge(name, tells, labels, namespace=NAMESPACE, multiprocess_mode=over_workers)


def _histogram(name: str, tells: str, *labels: str, buckets: tuple[float, ...]) -> Histogram:
    return Histogram(name, tells, labels, namespace=NAMESPACE, buckets=buckets)


# --- HTTP -----------------------------------------------------------------------------------

http_requests_total = _counter(
    "http_requests_total", "Answers given, by route template.", "route", "method", "status"
)
http_request_duration_seconds = _histogram(
    "http_request_duration_seconds",
    "From the request's first byte read to its answer, by route template.",
    *("route", "method"),
    buckets=_ANSWER_S,
)
http_requests_in_flight = _gauge(
    "http_requests_in_flight", "Requests being served right now.", over_workers=_SUM
)
worker_threads_busy = _gauge(
    "worker_threads_busy", "Threads of a worker at work right now.", over_workers=_EACH
)
requests_shed_total = _counter(
    "requests_shed_total", "Requests refused early so that the others are quick.", "reason"
)

# --- Payments -------------------------------------------------------------------------------

payments_total = _counter(
    "payments_total",
    "Payments answered, by the status they were answered with.",
    "provider",
    "outcome",
)
payment_duration_seconds = _histogram(
    "payment_duration_seconds",
    "process_payment, whole: claim, call, record.",
    *("provider", "outcome"),
    buckets=_REQUEST_S,
)
idempotent_requests_total = _counter(
    "idempotent_requests_total", "What the idempotency key decided.", "result"
)
payments_open = _gauge(
    "payments_open", "Payments not in a final state.", "status", over_workers=_LAST
)
unknown_oldest_age_seconds = _gauge(
    "unknown_oldest_age_seconds", "Age of the oldest unknown outcome; 0: none.", over_workers=_LAST
)
money_at_risk_minor = _gauge(
    "money_at_risk_minor",
    "Sum of payments whose money may have moved without our knowing, in minor units.",
    "currency",
    over_workers=_LAST,
)
needs_review = _gauge("needs_review", "Payments that only a person can settle.", over_workers=_LAST)
# Plain companions of the SLOs, without labels and created at 0: EMF to CloudWatch loses
# histograms and each counter's first value.
payments_good_total = _counter(
    "payments_good_total",
    "POST /v1/payments accepted, or refused truthfully (no 500). Without rehearsals, as the next two.",
)
payments_bad_total = _counter(
    "payments_bad_total", "POST /v1/payments answered with a 500 or a broken promise."
)
payments_slow_total = _counter(
    "payments_slow_total", "Payments that took over 500 ms besides the provider's own time."
)

# --- Provider -------------------------------------------------------------------------------

provider_calls_total = _counter(
    "provider_calls_total",
    "Calls to the provider and their results.",
    "provider",
    "operation",
    "result",
)
provider_call_duration_seconds = _histogram(
    "provider_call_duration_seconds",
    "The whole exchange with the provider, retries apart.",
    *("provider", "operation"),
    buckets=_PROVIDER_S,
)
provider_timeouts_total = _counter(
    "provider_timeouts_total",
    "Calls cut at their deadline: no connection, or no whole answer in time.",
    *("provider", "operation", "kind"),
)
provider_connection_errors_total = _counter(
    "provider_connection_errors_total",
    "Calls that ended without a whole, sound answer for another reason than time.",
    *("provider", "kind"),
)
provider_retries_total = _counter(
    "provider_retries_total", "Calls repeated within one request.", "provider", "reason"
)
retry_budget_remaining_ratio = _gauge(
    "retry_budget_remaining_ratio",
    "Share of the retry budget left in the worker that has least; 0: no retries.",
    over_workers=_MIN,
)

# --- Breaker --------------------------------------------------------------------------------

breaker_state = _gauge(
    "breaker_state",
    "1 for the state the host's circuit breaker is in, 0 for the others.",
    *("provider", "state"),
    over_workers=_LAST,
)
breaker_transitions_total = _counter(
    "breaker_transitions_total",
    "Moves of the breaker; shows openings shorter than a scrape.",
    "provider",
    "from_state",
    "to_state",
)
breaker_open_seconds_total = _counter(
    "breaker_open_seconds_total",
    "Time the host's breaker was not closed, up to its last turn.",
    "provider",
)
breaker_refusals_total = _counter(
    "breaker_refusals_total", "Calls not sent because the breaker was open.", "provider"
)

# --- Bulkhead -------------------------------------------------------------------------------

bulkhead_limit = _gauge(
    "bulkhead_limit", "Threads that may wait for the provider, all workers.", over_workers=_SUM
)
bulkhead_in_use = _gauge(
    "bulkhead_in_use", "Threads that wait for the provider right now.", over_workers=_SUM
)
bulkhead_refusals_total = _counter(
    "bulkhead_refusals_total", "Calls not sent because as many as may already waited."
)

# --- Pool and database ----------------------------------------------------------------------

db_pool_wait_seconds = _histogram(
    "db_pool_wait_seconds", "Wait for a database connection; the end is 0.5 s.", buckets=_POOL_S
)
db_pool_hold_seconds = _histogram(
    "db_pool_hold_seconds", "How long a connection was held.", buckets=_POOL_S
)
db_pool_size = _gauge("db_pool_size", "Connections the pool may hold.", over_workers=_EACH)
db_pool_in_use = _gauge("db_pool_in_use", "Connections checked out right now.", over_workers=_EACH)
db_pool_waiting = _gauge(
    "db_pool_waiting", "Callers that wait for a connection right now.", over_workers=_EACH
)
db_pool_timeouts_total = _counter(
    "db_pool_timeouts_total", "Waits that ended without a connection: connection pool exhausted."
)
db_pool_refusals_total = _counter(
    "db_pool_refusals_total", "Callers refused without waiting.", "reason"
)
db_pool_connections_opened_total = _counter(
    "db_pool_connections_opened_total", "Database connections opened."
)
db_pool_connections_discarded_total = _counter(
    "db_pool_connections_discarded_total", "Database connections dropped, and why.", "reason"
)
db_pool_leaks_total = _counter(
    "db_pool_leaks_total", "Connections held far too long, or never given back; always a bug."
)
db_statement_duration_seconds = _histogram(
    "db_statement_duration_seconds",
    "One statement's round trip, by its name in the code, or by its family.",
    "statement",
    buckets=_STATEMENT_S,
)
db_errors_total = _counter("db_errors_total", "Errors of the database, by class.", "class")

# --- Settling -------------------------------------------------------------------------------

rows_removed_total = _counter(
    "rows_removed_total", "Old rows removed by retention, by kind.", "table"
)
reconcile_settled_total = _counter(
    "reconcile_settled_total", "Payments settled after the answer was given.", "outcome"
)
reconcile_due_oldest_age_seconds = _gauge(
    "reconcile_due_oldest_age_seconds",
    "How far the reconciler is behind: age of the oldest overdue payment; 0: none.",
    over_workers=_LAST,
)
sweep_orphans_total = _counter(
    "sweep_orphans_total", "Charges in the provider's books that ours cannot explain."
)
sweep_age_seconds = _gauge(
    "sweep_age_seconds",
    "Age of the newest moment up to which all of the provider's lists were compared with our books.",
    over_workers=_LAST,
)
disputes_open = _gauge(
    "disputes_open", "Disputes that the payer's bank has not decided.", over_workers=_LAST
)
rows_parked_total = _counter(
    "rows_parked_total",
    "Payments and movements that could not be written or handled as they were, and wait.",
)
invariant_violations = _gauge(
    "invariant_violations",
    "Rows that break a promise about money; always 0.",
    "rule",
    over_workers=_LAST,
)
invariant_age_seconds = _gauge(
    "invariant_age_seconds",
    "How long ago the rule about money that was checked longest ago was checked over all its rows.",
    over_workers=_LAST,
)
event_months_missing = _gauge(
    "event_months_missing",
    "Months without a partition for events, of this month and the next two; 0: none.",
    over_workers=_LAST,
)
queued_payments = _gauge("queued_payments", "Payments stored and not yet sent.", over_workers=_LAST)
queued_oldest_age_seconds = _gauge(
    "queued_oldest_age_seconds", "Age of the oldest queued payment; 0: none.", over_workers=_LAST
)
recovering = _gauge(
    "recovering",
    "1 while the queue waits for the first whole sweep after a failover or restore; 0: it does not.",
    over_workers=_LAST,
)
webhooks_received_total = _counter(
    "webhooks_received_total", "Webhooks from the provider.", "result"
)
webhook_deliveries_total = _counter(
    "webhook_deliveries_total", "Tries to deliver our events.", "result"
)

# --- Health ---------------------------------------------------------------------------------

health_status = _gauge(
    "health_status",
    "1 pass, 0.5 warn (degraded is not down), 0 fail.",
    "component",
    over_workers=_LAST,
)
health_check_duration_seconds = _histogram(
    "health_check_duration_seconds", "One health check.", "component", buckets=_CHECK_S
)
simulation_active = _gauge(
    "simulation_active", "1 while a fault is being simulated.", "fault", over_workers=_LAST
)
drill_runs_total = _counter("drill_runs_total", "Drills run, by verdict.", "drill", "verdict")
slo_target_ratio = _gauge("slo_target_ratio", "What the SLO promises.", "slo", over_workers=_LAST)
build_info = _gauge(
    "build_info", "1; the label is the running version.", "version", over_workers=_LAST
)
