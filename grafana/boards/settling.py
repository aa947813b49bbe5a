"""Settling: payments in doubt, queued payments, and the agreement of the books."""

from __future__ import annotations

from grafana.frame import Board
from grafana.panels import BAD, DOUBT, GOOD, WAIT, bars, lines, number
from grafana.queries import counted, largest, per_second

BOARD = Board(
    name="settling",
    title="Settling",
    description="Unknown outcomes, the queue, the reconciler, the sweep of the provider's books, the invariants, webhooks.",
    rows=[
        (
            "Does everything settle?",
            [
                number(
                    "Oldest unknown outcome",
                    "s",
                    "Good is 0, or below 2 minutes while the provider recovers; 15 minutes is the promise.",
                    "UnknownTooOld",
                    (largest("unknown_oldest_age_seconds"), "age"),
                    steps=((None, GOOD), (120, DOUBT), (900, BAD)),
                ),
                number(
                    "The reconciler is behind by",
                    "s",
                    "Good is below 30 s; growth means that no reconciler settles.",
                    "ReconcilerSilent",
                    (largest("reconcile_due_oldest_age_seconds"), "behind"),
                    steps=((None, GOOD), (60, WAIT), (300, BAD)),
                ),
                number(
                    "Oldest queued payment",
                    "s",
                    "Good is 0 without an outage; at 24 h it is given up.",
                    "QueueAboutToExpire",
                    (largest("queued_oldest_age_seconds"), "age"),
                    steps=((None, GOOD), (300, WAIT), (72000, BAD)),
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
                    "Unexplained charges, 24 h",
                    "short",
                    "Good is 0: charges in the provider's books that ours cannot explain.",
                    "OrphanCharge",
                    (counted("sweep_orphans_total", over="24h"), "orphans"),
                    decimals=0,
                ),
                number(
                    "Promises about money broken",
                    "short",
                    "Good is 0, always.",
                    "InvariantViolated",
                    ("sum(max by (rule) (holdfast_invariant_violations))", "rows"),
                ),
            ],
        ),
        (
            "Doubt",
            [
                lines(
                    "Open payments by status",
                    "short",
                    "Good is small and level; purple must fall after every outage.",
                    "UnknownTooOld",
                    (largest("payments_open", by="status"), "{{status}}"),
                    stacked=True,
                ),
                lines(
                    "Age of the oldest unknown",
                    "s",
                    "Good is a saw below 2 minutes; the line is the promise of 15 minutes.",
                    "SettledInTimeBudgetBurn",
                    (largest("unknown_oldest_age_seconds"), "unknown"),
                    line_at=900,
                ),
                lines(
                    "Money at risk (minor units)",
                    "short",
                    "Good is 0, or back at 0 within minutes.",
                    "UnknownTooOld",
                    (largest("money_at_risk_minor", by="currency"), "{{currency}}"),
                    colour=DOUBT,
                ),
                lines(
                    "Settled after the answer, by outcome",
                    "ops",
                    "Good follows the payments that became unknown; needs_review has no proof, put off is RowParked.",
                    "NeedsReview",
                    (per_second("reconcile_settled_total", by="outcome"), "{{outcome}}"),
                    (per_second("rows_parked_total"), "put off"),
                    stacked=True,
                ),
                lines(
                    "How far the reconciler is behind",
                    "s",
                    "Good is below 30 s; 300 s pages.",
                    "ReconcilerSilent",
                    (largest("reconcile_due_oldest_age_seconds"), "behind"),
                    line_at=300,
                ),
                lines(
                    "Stored, not sent yet",
                    "short",
                    "Good is 0; after an outage it drains, oldest first, merchants in turn.",
                    "QueueAboutToExpire",
                    (largest("queued_payments"), "queued"),
                ),
            ],
        ),
        (
            "Books and webhooks",
            [
                bars(
                    "Invariants, by rule",
                    "short",
                    "Good is 0 in every row.",
                    "InvariantViolated",
                    (largest("invariant_violations", by="rule"), "{{rule}}"),
                ),
                lines(
                    "Webhooks from the provider",
                    "ops",
                    "Good is stored and a few duplicates; bad_signature is a stranger or a changed secret.",
                    "WebhookSignaturesRefused",
                    (per_second("webhooks_received_total", by="result"), "{{result}}"),
                    stacked=True,
                ),
                lines(
                    "Our events to the merchants",
                    "ops",
                    "Good is delivered; given_up means that a merchant's endpoint was down for days.",
                    "WebhookEndpointFailing",
                    (per_second("webhook_deliveries_total", by="result"), "{{result}}"),
                    stacked=True,
                ),
            ],
        ),
        (
            "Safety nets",
            [
                lines(
                    "Provider's books last compared",
                    "s",
                    "Good is under 10 minutes; at 30 minutes it pages.",
                    "SweepBehind",
                    (largest("sweep_age_seconds"), "age"),
                ),
                lines(
                    "Rules about money last checked",
                    "s",
                    "Good is under 5 minutes; at 15 minutes it pages.",
                    "InvariantsNotChecked",
                    (largest("invariant_age_seconds"), "age"),
                ),
                lines(
                    "Open disputes",
                    "short",
                    "Good is 0: each waits for evidence until a date that the provider sets.",
                    "DisputeOpen",
                    (largest("disputes_open"), "disputes"),
                ),
                lines(
                    "Queue held until a whole sweep",
                    "short",
                    "Good is 0; 1 after a restore or a failover, until the provider's books are read.",
                    "SweepBehind",
                    (largest("recovering"), "recovering"),
                    colour=WAIT,
                    width=6,
                ),
                lines(
                    "Months without a partition for events",
                    "short",
                    "Good is 0; 1 is a month's notice: `python -m service retain` has not run.",
                    "EventMonthMissing",
                    (largest("event_months_missing"), "months"),
                    colour=WAIT,
                    width=6,
                ),
                lines(
                    "Unexplained charges, by the hour",
                    "short",
                    "Good is 0; the number at the top forgets after 24 h, the time axis does not.",
                    "OrphanCharge",
                    (counted("sweep_orphans_total", over="1h"), "orphans"),
                    width=6,
                ),
                lines(
                    "Old rows removed, by table",
                    "ops",
                    "Good is small and steady; 0 for days means that the reconciler removes nothing.",
                    "ReconcilerSilent",
                    (per_second("rows_removed_total", by="table"), "{{table}}"),
                    stacked=True,
                    width=6,
                ),
            ],
        ),
    ],
)
