"""Incident: the three errors side by side, their effects, and the guards' actions."""

from __future__ import annotations

from grafana.frame import Board
from grafana.panels import BAD, DOUBT, GOOD, REFUSED, WAIT, lines, number, states
from grafana.queries import INSTANCE, PROVIDER, added, counted, largest, per_second, percentiles

# In the order in which they override each other when several workers differ.
BREAKER = {"0": ("closed", GOOD), "1": ("half-open", WAIT), "2": ("open", BAD)}
BREAKER_STATE = (
    f'max by (instance, provider) (holdfast_breaker_state{{{PROVIDER}, state="half_open"}})'
    f' + 2 * max by (instance, provider) (holdfast_breaker_state{{{PROVIDER}, state="open"}})'
)
FEW = ((None, GOOD), (1, WAIT), (10, BAD))

BOARD = Board(
    name="incident",
    title="Incident",
    description="Which of the three errors is it, what is the customer impact, and is money lost? Left to right: timeouts, HTTPS pool, database pool.",
    rows=[
        (
            "What broke, in the last 5 minutes?",
            [
                number(
                    "Timeouts after 5000 ms",
                    "short",
                    "Good is 0: Payment service connection failed - timeout after 5000ms.",
                    "ProviderTimeouts",
                    (counted("provider_timeouts_total", where=PROVIDER, over="5m"), "calls"),
                    steps=FEW,
                    decimals=0,
                ),
                number(
                    "HTTPSConnectionPool errors",
                    "short",
                    "Good is 0: calls that ended without a valid answer, for a reason other than time.",
                    "ProviderConnectionErrors",
                    (
                        counted("provider_connection_errors_total", where=PROVIDER, over="5m"),
                        "calls",
                    ),
                    steps=FEW,
                    decimals=0,
                ),
                number(
                    "Connection pool exhausted",
                    "short",
                    "Good is 0: callers that got no database connection in time.",
                    "PoolTimeouts",
                    (counted("db_pool_timeouts_total", over="5m"), "callers"),
                    steps=FEW,
                    decimals=0,
                ),
                number(
                    "Untruthful answers",
                    "short",
                    "Good is 0, in the incident too: refusals and 202s are truthful.",
                    "TruthfulAnswersBudgetBurn",
                    (counted("payments_bad_total", over="5m"), "answers"),
                    decimals=0,
                ),
                number(
                    "Not known yet",
                    "short",
                    "Good falls to 0 within minutes after the provider is back.",
                    "UnknownTooOld",
                    (largest("payments_open", where=f'{INSTANCE}, status="unknown"'), "payments"),
                    steps=((None, GOOD), (1, DOUBT)),
                ),
                number(
                    "Charged twice or lost",
                    "short",
                    "Good is 0, always: the books by SQL and the provider's by listing.",
                    "InvariantViolated",
                    ("sum(max by (rule) (holdfast_invariant_violations))", "payments"),
                ),
            ],
        ),
        (
            "The three errors",
            [
                lines(
                    "1 · Provider timeouts, by kind",
                    "ops",
                    "Good is 0; a timeout of a charge is an unknown outcome, never a failure.",
                    "ProviderTimeouts",
                    (per_second("provider_timeouts_total", by="kind", where=PROVIDER), "{{kind}}"),
                    colour=BAD,
                ),
                lines(
                    "2 · HTTPS connection errors, by kind",
                    "ops",
                    "Good is 0; refused, dns and tls mean not sent, the others that it may have been.",
                    "ProviderConnectionErrors",
                    (
                        per_second("provider_connection_errors_total", by="kind", where=PROVIDER),
                        "{{kind}}",
                    ),
                    colour=BAD,
                ),
                lines(
                    "3 · Database pool exhausted",
                    "ops",
                    "Good is 0; each was answered 503 before any call was sent.",
                    "PoolTimeouts",
                    (per_second("db_pool_timeouts_total"), "timed out"),
                    (per_second("db_pool_refusals_total"), "refused"),
                ),
                lines(
                    "1 · Time of the provider's calls",
                    "s",
                    "Good is p99 well below the deadline of 5 s; a flat line at 5 is a provider that hangs.",
                    "ProviderTimeouts",
                    *percentiles("provider_call_duration_seconds", where=PROVIDER),
                    line_at=5,
                ),
                states(
                    "2 · Circuit breaker",
                    "Good is green; red stores payments instead of sending them into an outage.",
                    "BreakerOpen",
                    (BREAKER_STATE, "{{provider}} on {{instance}}"),
                    meaning=BREAKER,
                ),
                lines(
                    "3 · Database connections",
                    "short",
                    "Good is in use below the size and no caller waiting.",
                    "PoolSaturated",
                    (added("db_pool_in_use"), "in use"),
                    (added("db_pool_waiting"), "waiting"),
                    (added("db_pool_size"), "size"),
                ),
                lines(
                    "1 · Became unknown, and settled",
                    "ops",
                    "Good is settled catching up: unknown payments are settled one by one.",
                    "UnknownTooOld",
                    (
                        per_second("payments_total", where=f'{PROVIDER}, outcome="unknown"'),
                        "became unknown",
                    ),
                    (per_second("reconcile_settled_total"), "settled"),
                ),
                lines(
                    "2 · Not sent into the outage",
                    "ops",
                    "Good is 0 without an outage; in one it shows the guard at work.",
                    "BreakerOpen",
                    (per_second("breaker_refusals_total", where=PROVIDER), "breaker open"),
                    (per_second("bulkhead_refusals_total"), "bulkhead full"),
                    colour=REFUSED,
                ),
                lines(
                    "3 · Wait for a connection",
                    "s",
                    "Good is below 5 ms at p99; 0.5 s is where a caller is refused.",
                    "PoolSaturated",
                    *percentiles("db_pool_wait_seconds"),
                    line_at=0.5,
                ),
            ],
        ),
        (
            "Guards and customer impact",
            [
                lines(
                    "Payments by outcome",
                    "ops",
                    "Good is green; yellow is queued, purple is being settled; no payment is dropped.",
                    "BreakerOpen",
                    (per_second("payments_total", by="outcome", where=PROVIDER), "{{outcome}}"),
                    stacked=True,
                ),
                lines(
                    "Stored, not sent yet",
                    "short",
                    "Good drains to 0 within minutes after the provider is back.",
                    "QueueAboutToExpire",
                    (largest("queued_payments"), "queued"),
                ),
                lines(
                    "Refused early, by reason",
                    "ops",
                    "Good is 0; each is a truthful 503 or 429 and nothing was charged.",
                    "PaymentsRefused",
                    (per_second("requests_shed_total", by="reason"), "{{reason}}"),
                    colour=REFUSED,
                    stacked=True,
                ),
            ],
        ),
    ],
)
