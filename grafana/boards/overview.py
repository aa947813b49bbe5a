"""Overview: money, promises and customer impact."""

from __future__ import annotations

from grafana.frame import Board
from grafana.panels import BAD, DOUBT, GOOD, LIMIT, REFUSED, WAIT, lines, number, states
from grafana.queries import PAY, PROVIDER, largest, per_second, percentiles

HEALTH = {"0": ("fail", BAD), "0.5": ("warn", WAIT), "1": ("pass", GOOD)}

BOARD = Board(
    name="overview",
    title="Overview",
    description="One glance: is money safe, what is the customer impact, which promise is in danger.",
    rows=[
        (
            "Is money safe?",
            [
                number(
                    "Promises about money broken",
                    "short",
                    "Good is 0, always: every row counted here is a payment that went wrong.",
                    "InvariantViolated",
                    ("sum(max by (rule) (holdfast_invariant_violations))", "rows"),
                ),
                number(
                    "Money at risk (minor units)",
                    "short",
                    "Good is 0, or a little for seconds: payments in doubt, so their money may have moved.",
                    "UnknownTooOld",
                    (largest("money_at_risk_minor", by="currency"), "{{currency}}"),
                    steps=((None, GOOD), (1, DOUBT)),
                ),
                number(
                    "Oldest unknown outcome",
                    "s",
                    "Good is 0, or below 2 minutes while the provider recovers; 15 minutes is the promise.",
                    "UnknownTooOld",
                    (largest("unknown_oldest_age_seconds"), "age"),
                    steps=((None, GOOD), (120, DOUBT), (900, BAD)),
                ),
                number(
                    "Waiting for a person",
                    "short",
                    "Good is 0: only a person can settle these payments.",
                    "NeedsReview",
                    (largest("needs_review"), "payments"),
                    steps=((None, GOOD), (1, DOUBT)),
                ),
                number(
                    "Alerts that page",
                    "short",
                    "Good is 0; drills are not counted.",
                    "README",
                    (
                        'count(ALERTS{alertstate="firing", severity="page", drill!="true"}) or vector(0)',
                        "firing",
                    ),
                ),
                number(
                    "Instances that answer",
                    "short",
                    "Good is all of them: an instance without an answer is not observed.",
                    "MetricsMissing",
                    ('sum(up{job="holdfast"})', "instances"),
                    steps=((None, BAD), (1, GOOD)),
                ),
            ],
        ),
        (
            "Which promise is in danger?",
            [
                number(
                    "Error budget left of 30 days",
                    "percentunit",
                    "Good is above 25 %; below 0 the promise is broken and changes wait.",
                    "TruthfulAnswersBudgetBurn",
                    ('1 - slo:holdfast_burn_rate:30d{drill="false"}', "{{slo}}"),
                    steps=((None, BAD), (0, WAIT), (0.25, GOOD)),
                    width=16,
                    decimals=1,
                ),
                number(
                    "What we promise",
                    "percentunit",
                    "Good is a target for each promise: truthful 99.95 %, quick 99 %, settled 99.9 %, invariants 100 %.",
                    "TruthfulAnswersBudgetBurn",
                    ("max by (slo) (holdfast_slo_target_ratio)", "{{slo}}"),
                    steps=((None, LIMIT),),
                    width=8,
                    decimals=2,
                ),
                lines(
                    "Budget burn rate over 1 h",
                    "short",
                    "Good is at most 1, which spends exactly the budget; 14.4 pages.",
                    "TruthfulAnswersBudgetBurn",
                    ('slo:holdfast_burn_rate:1h{drill="false"}', "{{slo}}"),
                    line_at=14.4,
                ),
                lines(
                    "Untruthful and slow answers",
                    "ops",
                    "Good is 0 bad, and slow below one in a hundred: slow means over 500 ms besides the provider.",
                    "QuickAnswersBudgetBurn",
                    (per_second("payments_good_total"), "good"),
                    (per_second("payments_slow_total"), "slow"),
                    (per_second("payments_bad_total"), "bad"),
                ),
                states(
                    "Health of the components",
                    "Good is green throughout; yellow is degraded, which is not down.",
                    "ComponentDown",
                    (
                        'min by (component) (holdfast_health_status{instance=~"$instance"})',
                        "{{component}}",
                    ),
                    meaning=HEALTH,
                ),
            ],
        ),
        (
            "What is the customer impact?",
            [
                lines(
                    "Payments by outcome",
                    "ops",
                    "Good is green; purple is being settled, yellow is queued, blue was declined by the bank.",
                    "BreakerOpen",
                    (per_second("payments_total", by="outcome", where=PROVIDER), "{{outcome}}"),
                    stacked=True,
                ),
                lines(
                    "Time to answer a payment",
                    "s",
                    "Good is the provider's own time and a little: p99 below 1 s, and never above the deadline of 5 s.",
                    "QuickAnswersBudgetBurn",
                    *percentiles("http_request_duration_seconds", where=PAY),
                    line_at=5,
                ),
                lines(
                    "Refused early, by reason",
                    "ops",
                    "Good is 0; each is a truthful 503 or 429 and no charge was made.",
                    "PaymentsRefused",
                    (per_second("requests_shed_total", by="reason"), "{{reason}}"),
                    colour=REFUSED,
                    stacked=True,
                ),
                lines(
                    "Answers by status",
                    "ops",
                    "Good has no 500 at all; 402 is a decline and 202 a payment that we own.",
                    "InternalErrors",
                    (per_second("http_requests_total", by="status"), "{{status}}"),
                    stacked=True,
                ),
                lines(
                    "Time in process_payment, p99 by outcome",
                    "s",
                    "Good is succeeded below 1 s; unknown sits at the deadline of 5 s by its nature.",
                    "ProviderTimeouts",
                    (
                        "histogram_quantile(0.99, sum by (outcome, le) (rate("
                        f"holdfast_payment_duration_seconds_bucket{{{PROVIDER}}}[$__rate_interval])))",
                        "{{outcome}}",
                    ),
                ),
                lines(
                    "What the idempotency keys decided",
                    "ops",
                    "Good is mostly new; replays mean that clients retry, mismatches that one has a bug.",
                    "PaymentsRefused",
                    (per_second("idempotent_requests_total", by="result"), "{{result}}"),
                    stacked=True,
                ),
            ],
        ),
    ],
)
