"""Checks: one value and one result for all of them, and the bounds that several of them share.

Health runs them periodically, the doctor runs them once, and the console shows what they say as reasons.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Status = Literal["pass", "warn", "fail"]


@dataclass(frozen=True, slots=True)
class CheckResult:
    """The result of one check. `output` and `todo` are for people: no secrets."""

    status: Status
    output: str = ""
    observed: float | None = None
    unit: str | None = None
    # The repair; empty where no action is needed, or where a runbook has it.
    todo: str = ""


@dataclass(frozen=True, slots=True)
class ServiceCheck:
    """One check. If `probe` raises, the check fails with the error's text."""

    name: str
    # The component type of the draft health+json: datastore, component, system.
    kind: str
    probe: Callable[[], CheckResult]
    # Critical: without it no payment can be accepted. Other failures leave the service degraded.
    is_critical: bool = False


@dataclass(frozen=True, slots=True)
class Bounds:
    """The two limits of a figure that gets worse as it grows (or as it shrinks: fail below warn)."""

    warn: float
    fail: float

    def status(self, figure: float) -> Status:
        """`pass` within the first limit, `warn` from it on, `fail` from the second one on."""
        sign = 1.0 if self.fail >= self.warn else -1.0
        if sign * figure < sign * self.warn:
            return "pass"
        return "warn" if sign * figure < sign * self.fail else "fail"


# Webhook signatures are valid for 300 s both ways, and NTP keeps clocks well within a second.
CLOCK_APART_S = Bounds(warn=2.0, fail=60.0)
# The reconciler writes a heartbeat every 5 s: three missed ones, and twelve.
HEARTBEAT_AGE_S = Bounds(warn=15.0, fail=60.0)
DISK_FREE_RATIO = Bounds(warn=0.10, fail=0.02)
# Every payment waits for two or three round trips to the database.
DATABASE_ROUND_TRIP_WARN_MS = 20.0

# The limits of alerts with the same subject (a test compares them with the rules).
UNKNOWN_TOO_OLD_S = 900.0
# An older 0 of the rules about money proves nothing.
INVARIANTS_TOO_OLD_S = 900.0
SWEEP_TOO_OLD_S = 1800.0

RECONCILER_BEHIND_S = 60.0
# A payment is stored before it is sent: younger ones are still being sent.
QUEUE_STANDS_S = 5.0
