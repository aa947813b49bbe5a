"""Drills: active faults, verdicts, and broken promises."""

from __future__ import annotations

from grafana.boards.incident import BREAKER, BREAKER_STATE
from grafana.frame import Board
from grafana.panels import BAD, GOOD, WAIT, bars, lines, number, states
from grafana.queries import INSTANCE, PROVIDER, counted

DRILLED = "on (instance) group_left instance:holdfast_drill:active"
FAULT = {"0": ("none", GOOD), "1": ("simulated", WAIT)}

BOARD = Board(
    name="drills",
    title="Drills",
    description="Faults made on purpose: when, where, how they ended. Their errors are counted separately and do not page.",
    rows=[
        (
            "Would it hold?",
            [
                number(
                    "Drills that HELD, 30 days",
                    "short",
                    "Good is at least one a month of each.",
                    "NoDrillHeld",
                    (
                        counted(
                            "drill_runs_total", where=f'{INSTANCE}, verdict="held"', over="30d"
                        ),
                        "held",
                    ),
                    steps=((None, BAD), (1, GOOD)),
                    width=6,
                    decimals=0,
                    empty="none yet",
                ),
                number(
                    "Drills that BROKE, 30 days",
                    "short",
                    "Good is 0; each is a fault that would have hurt in production.",
                    "NoDrillHeld",
                    (
                        counted(
                            "drill_runs_total", where=f'{INSTANCE}, verdict="broke"', over="30d"
                        ),
                        "broke",
                    ),
                    width=6,
                    decimals=0,
                    empty="none yet",
                ),
                number(
                    "Faults simulated right now",
                    "short",
                    "Good is 0 without a drill; a fault ends by itself within 5 minutes.",
                    "SimulationLeftOn",
                    (f"sum(holdfast_simulation_active{{{INSTANCE}}})", "faults"),
                    steps=((None, GOOD), (1, WAIT)),
                    width=6,
                ),
                number(
                    "Alerts of drills",
                    "short",
                    "Good is 0 without a drill; in a drill they prove that the alerts work.",
                    "SimulationLeftOn",
                    ('count(ALERTS{alertstate="firing", drill="true"}) or vector(0)', "firing"),
                    steps=((None, GOOD), (1, WAIT)),
                    width=6,
                ),
            ],
        ),
        (
            "Faults and verdicts",
            [
                states(
                    "Faults over time",
                    "Good is short bars; no fault for over 15 minutes.",
                    "SimulationLeftOn",
                    (
                        f"max by (instance, fault) (holdfast_simulation_active{{{INSTANCE}}})",
                        "{{fault}} {{instance}}",
                    ),
                    meaning=FAULT,
                    width=12,
                ),
                bars(
                    "How drills ended, 30 days",
                    "short",
                    "Good is held; inconclusive means no fault proof or too few payments.",
                    "NoDrillHeld",
                    (
                        # Of a dozen drills and five verdicts, those that happened.
                        f"{counted('drill_runs_total', by='verdict, drill', over='30d')} > 0",
                        "{{verdict}} {{drill}}",
                    ),
                    width=12,
                ),
            ],
        ),
        (
            "Effect on the instances under drill",
            [
                lines(
                    "Payments by outcome, drilled instances",
                    "ops",
                    "Good has no bad outcome: a drill is meant to show unknown and queued.",
                    "README",
                    (
                        f"sum by (outcome) (rate(holdfast_payments_total{{{PROVIDER}}}[$__rate_interval]) * {DRILLED})",
                        "{{outcome}}",
                    ),
                    stacked=True,
                ),
                lines(
                    "Budget burn in drills, 5 min",
                    "short",
                    "Good is 0 for truthful answers, also during every fault.",
                    "TruthfulAnswersBudgetBurn",
                    ('slo:holdfast_burn_rate:5m{drill="true"}', "{{slo}}"),
                ),
                states(
                    "Circuit breaker",
                    "Good opens soon after the fault, and closes within seconds after its end.",
                    "BreakerOpen",
                    (BREAKER_STATE, "{{provider}} on {{instance}}"),
                    meaning=BREAKER,
                ),
            ],
        ),
    ],
)
