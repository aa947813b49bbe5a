"""Attempt and timeline JSON of one step."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from service.providers.base import Outcome

# Enough to show the history; a payment with many repeats keeps the newest.
ATTEMPTS_KEPT = 20

Attempts = Sequence[Mapping[str, Any]]


def next_attempt(before: Attempts) -> int:
    """The number of the next attempt."""
    return int(before[-1]["n"]) + 1 if before else 1


def attempts_json(before: Attempts, op: str, outcome: Outcome) -> str:
    """The attempts with one more, as JSON."""
    attempt = {
        "n": next_attempt(before),
        "op": op,
        "stage": outcome.stage.value,
        "error": outcome.error,
        "ms": outcome.ms,
    }
    return json.dumps([*before, attempt][-ATTEMPTS_KEPT:])


def detail_json(
    outcome: Outcome | None = None,
    /,
    *,
    pool_wait_s: float | None = None,
    **facts: str | int | None,
) -> str:
    """The timeline's detail of a step, as JSON, without amounts and secrets."""
    detail: dict[str, Any] = dict(facts)
    if pool_wait_s is not None:
        detail["pool_wait_ms"] = round(pool_wait_s * 1000, 1)
    if outcome is not None:
        detail |= {
            "outcome": outcome.kind.value,
            "stage": outcome.stage.value,
            "error": outcome.error,
            "breaker": outcome.breaker,
            "ms": outcome.ms,
        }
    return json.dumps({name: value for name, value in detail.items() if value is not None})
