"""Provider: its answers, our guards, and calls that were not sent."""

from __future__ import annotations

from grafana.boards.incident import BREAKER, BREAKER_STATE
from grafana.frame import Board
from grafana.panels import BAD, GOOD, REFUSED, WAIT, heat, lines, number, states
from grafana.queries import (
    PROVIDER,
    added,
    buckets,
    counted,
    per_second,
    quantile,
    smallest,
)

BOARD = Board(
    name="provider",
    title="Provider",
    description="Calls to the payment provider, the breaker, the retries and the bulkhead before them.",
    rows=[
        (
            "Does it answer?",
            [
                number(
                    "Soundly answered, 5 min",
                    "percentunit",
                    "Good is above 99 %; a decline is a sound answer.",
                    "ProviderConnectionErrors",
                    (
                        "sum(increase(holdfast_provider_calls_total"
                        f'{{{PROVIDER}, result=~"succeeded|pending|declined"}}[5m]))'
                        f" / sum(increase(holdfast_provider_calls_total{{{PROVIDER}}}[5m]))",
                        "answered",
                    ),
                    steps=((None, BAD), (0.95, WAIT), (0.99, GOOD)),
                    decimals=1,
                ),
                number(
                    "Time of a charge, p99, 5 min",
                    "s",
                    "Good is below 2 s; at 5 s the deadline cuts.",
                    "ProviderTimeouts",
                    (
                        "histogram_quantile(0.99, sum by (le) (rate(holdfast_provider_call_duration_seconds_bucket"
                        f'{{{PROVIDER}, operation="confirm"}}[5m])))',
                        "p99",
                    ),
                    steps=((None, GOOD), (2, WAIT), (4.9, BAD)),
                    decimals=2,
                ),
                number(
                    "Cut at the deadline, 5 min",
                    "short",
                    "Good is 0: these ended between 4.9 and 5.1 s, so time ended them, not the provider.",
                    "ProviderTimeouts",
                    (
                        f'sum(increase(holdfast_provider_call_duration_seconds_bucket{{{PROVIDER}, le="5.1"}}[5m]))'
                        f' - sum(increase(holdfast_provider_call_duration_seconds_bucket{{{PROVIDER}, le="4.9"}}[5m]))',
                        "calls",
                    ),
                    steps=((None, GOOD), (1, WAIT), (10, BAD)),
                    decimals=0,
                ),
                number(
                    "Breaker not closed, 1 h",
                    "s",
                    "Good is 0; counted by the breaker itself when it moves, so short openings show too.",
                    "BreakerOpen",
                    (
                        f"max(increase(holdfast_breaker_open_seconds_total{{{PROVIDER}}}[1h]))",
                        "open",
                    ),
                    steps=((None, GOOD), (1, WAIT), (120, BAD)),
                    decimals=0,
                ),
                number(
                    "Openings of the breaker, 1 h",
                    "short",
                    "Good is 0 or 1; many short ones mean an overloaded provider.",
                    "BreakerFlapping",
                    (
                        counted(
                            "breaker_transitions_total",
                            where=f'{PROVIDER}, from_state="closed", to_state="open"',
                            over="1h",
                        ),
                        "times",
                    ),
                    steps=((None, GOOD), (1, WAIT), (4, BAD)),
                    decimals=0,
                ),
                number(
                    "Retry budget left",
                    "percentunit",
                    "Good is near 100 %; at 0 we no longer repeat calls, so as not to make an outage worse.",
                    "ProviderConnectionErrors",
                    (smallest("retry_budget_remaining_ratio"), "left"),
                    steps=((None, BAD), (0.1, WAIT), (0.5, GOOD)),
                    decimals=0,
                ),
            ],
        ),
        (
            "Its answers",
            [
                lines(
                    "Calls by result",
                    "ops",
                    "Good is green; purple means that money may have moved and is looked up.",
                    "ProviderTimeouts",
                    (per_second("provider_calls_total", by="result", where=PROVIDER), "{{result}}"),
                    stacked=True,
                ),
                heat(
                    "Time of a call, as a crowd",
                    "s",
                    "Good is one band far below 5 s; a second band at 5 s is a provider that hangs for some.",
                    "ProviderTimeouts",
                    buckets("provider_call_duration_seconds", where=PROVIDER),
                ),
                lines(
                    "Time of a call, p99 by operation",
                    "s",
                    "Good is every operation below 2 s; look-ups have a shorter deadline.",
                    "ProviderTimeouts",
                    (
                        quantile(
                            0.99, "provider_call_duration_seconds", by="operation", where=PROVIDER
                        ),
                        "{{operation}}",
                    ),
                    line_at=5,
                ),
                lines(
                    "Timeouts by operation and kind",
                    "ops",
                    "Good is 0; connect_timeout was certainly not sent, the others may have been.",
                    "ProviderTimeouts",
                    (
                        per_second("provider_timeouts_total", by="operation, kind", where=PROVIDER),
                        "{{operation}} {{kind}}",
                    ),
                    colour=BAD,
                ),
                lines(
                    "Connection errors by kind",
                    "ops",
                    "Good is 0; refused, dns and tls were certainly not sent.",
                    "ProviderConnectionErrors",
                    (
                        per_second("provider_connection_errors_total", by="kind", where=PROVIDER),
                        "{{kind}}",
                    ),
                    colour=BAD,
                ),
                lines(
                    "Calls by operation",
                    "ops",
                    "Good is a prepare for each confirm; many look-ups mean many unknowns.",
                    "UnknownTooOld",
                    (
                        per_second("provider_calls_total", by="operation", where=PROVIDER),
                        "{{operation}}",
                    ),
                ),
            ],
        ),
        (
            "Our guards",
            [
                states(
                    "Circuit breaker",
                    "Good is green; red sends probes only.",
                    "BreakerOpen",
                    (BREAKER_STATE, "{{provider}} on {{instance}}"),
                    meaning=BREAKER,
                ),
                lines(
                    "Moves of the breaker",
                    "ops",
                    "Good is none; closed to open and back once is an outage, a saw is flapping.",
                    "BreakerFlapping",
                    (
                        per_second(
                            "breaker_transitions_total", by="from_state, to_state", where=PROVIDER
                        ),
                        "{{from_state}} to {{to_state}}",
                    ),
                ),
                lines(
                    "Time not closed in the last hour",
                    "s",
                    "Good is 0; counted when the breaker moves, so a long outage shows at its end.",
                    "BreakerOpen",
                    (
                        f"max by (provider) (increase(holdfast_breaker_open_seconds_total{{{PROVIDER}}}[1h]))",
                        "open {{provider}}",
                    ),
                ),
                lines(
                    "Not sent: open breaker, full bulkhead",
                    "ops",
                    "Good is 0; each was queued or refused truthfully, none waited.",
                    "BulkheadRefusals",
                    (per_second("breaker_refusals_total", where=PROVIDER), "breaker open"),
                    (per_second("bulkhead_refusals_total"), "bulkhead full"),
                    colour=REFUSED,
                ),
                lines(
                    "Threads that wait for the provider",
                    "short",
                    "Good is in use below the limit; a limit that falls means that the provider grew slow.",
                    "BulkheadRefusals",
                    (added("bulkhead_in_use"), "in use"),
                    (added("bulkhead_limit"), "limit"),
                ),
                lines(
                    "Calls repeated, by reason",
                    "ops",
                    "Good is far below one in ten of all calls; only calls that were not executed are repeated.",
                    "ProviderConnectionErrors",
                    (
                        per_second("provider_retries_total", by="reason", where=PROVIDER),
                        "{{reason}}",
                    ),
                    colour=WAIT,
                ),
            ],
        ),
    ],
)
