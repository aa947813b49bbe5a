"""The checked components: each is built from plain callables of the application.

`statistics` is the report of `Statistics`: the workers' view, beside the view of this process.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from service.observability.checks import (
    CLOCK_APART_S,
    DISK_FREE_RATIO,
    HEARTBEAT_AGE_S,
    CheckResult,
    ServiceCheck,
    Status,
)
from service.observability.metrics import slots

# A scrape tests the slots too, for milliseconds.
SLOTS_WAIT_S = 1.0


def database(
    ping: Callable[[], object], statistics: Callable[[], Mapping[str, Any]]
) -> ServiceCheck:
    """`ping` sends the database a statement and raises when it gets no answer.

    Our answer does not prove that the workers get one: `warn` while their callers get no connection.
    """

    def probe() -> CheckResult:
        begun_s = time.monotonic()
        ping()
        took_ms = _ms_since(begun_s)
        errors = statistics()["windows"]["1m"]["errors"]
        in_vain = errors["db_pool_timeouts"] + sum(errors["db_pool_refusals"].values())
        if in_vain:
            told = f"answers here, but the workers had no connection for {in_vain:.0f} callers in the last minute"
            return CheckResult("warn", told, observed=took_ms, unit="ms")
        return CheckResult("pass", observed=took_ms, unit="ms")

    return ServiceCheck("database", "datastore", probe, is_critical=True)


def provider(
    reach: Callable[[], object], statistics: Callable[[], Mapping[str, Any]]
) -> ServiceCheck:
    """`reach` calls the provider without moving money and raises when it cannot.

    Its answer does not prove that payments work: `warn` while the workers' breaker is not closed.
    """

    def probe() -> CheckResult:
        begun_s = time.monotonic()
        reach()
        took_ms = _ms_since(begun_s)
        breaker = statistics()["now"]["breaker"]
        if breaker in ("open", "half_open"):
            told = f"answers here, but the workers' breaker is {breaker.replace('_', '-')}: payments are queued"
            return CheckResult("warn", told, observed=took_ms, unit="ms")
        return CheckResult("pass", observed=took_ms, unit="ms")

    return ServiceCheck("provider", "component", probe)


def reconciler(
    last_run_at: Callable[[], datetime | None],
    waiting: Callable[[], str | None],
    *,
    first_beat_within_s: float = HEARTBEAT_AGE_S.warn,
) -> ServiceCheck:
    """`last_run_at` is the reconciler's newest heartbeat, None before the first one; `waiting` says
    in a sentence what it may not do yet, None where nothing is held.

    The first one is due within `first_beat_within_s`, so that a common start is not a failure.
    """
    awaited_until_s = time.monotonic() + first_beat_within_s

    def probe() -> CheckResult:
        beat = last_run_at()
        silent_s = None if beat is None else round((datetime.now(UTC) - beat).total_seconds(), 1)
        if silent_s is not None and silent_s < HEARTBEAT_AGE_S.warn:
            held = waiting()
            return CheckResult("warn" if held else "pass", held or "", silent_s, "s")
        if time.monotonic() < awaited_until_s:
            return CheckResult("warn", "its first beat is awaited", observed=silent_s, unit="s")
        if silent_s is None:
            return CheckResult("fail", "it has never run: unknown payments are not being settled")
        told = f"silent for {silent_s:.0f} s"
        return CheckResult(HEARTBEAT_AGE_S.status(silent_s), told, observed=silent_s, unit="s")

    return ServiceCheck("reconciler", "component", probe)


def disk(path: Path) -> ServiceCheck:
    """Free disk space in the directories that this instance writes to."""

    def probe() -> CheckResult:
        usage = shutil.disk_usage(path)
        free_ratio = round(usage.free / usage.total, 4)
        status = DISK_FREE_RATIO.status(free_ratio)
        told = "" if status == "pass" else f"{usage.free // 1_000_000} MB are free"
        return CheckResult(status, told, observed=free_ratio, unit="ratio")

    return ServiceCheck("disk", "system", probe)


def clock(database_now: Callable[[], datetime]) -> ServiceCheck:
    """Our clock compared with the database's, which leases and schedules use."""

    def probe() -> CheckResult:
        before = datetime.now(UTC)
        try:
            theirs = database_now()
        # Without the database there is no comparison; the database component reports the outage.
        except Exception as error:  # noqa: BLE001
            return CheckResult("warn", f"not compared: {type(error).__name__}")
        ours = before + (datetime.now(UTC) - before) / 2
        skew_s = round(abs((theirs - ours).total_seconds()), 3)
        status = CLOCK_APART_S.status(skew_s)
        told = "" if status == "pass" else f"{skew_s:.1f} s apart from the database"
        return CheckResult(status, told, observed=skew_s, unit="s")

    return ServiceCheck("clock", "system", probe)


def workers(expected: int) -> ServiceCheck:
    """The data plane's processes on this machine, counted by their slots."""

    def probe() -> CheckResult:
        if not slots.active():
            return CheckResult("warn", "this process is alone: it shares its metrics with nobody")
        held = slots.live_slots(slots.directory(), wait_s=SLOTS_WAIT_S)
        if held is None:
            return CheckResult("warn", "who is alive could not be told just now")
        alive = sum(slot.startswith("web-") for slot in held)
        if alive >= expected:
            return CheckResult("pass", observed=alive, unit="processes")
        status: Status = "warn" if alive else "fail"
        return CheckResult(status, f"{alive} of {expected} are alive", alive, "processes")

    return ServiceCheck("workers", "system", probe, is_critical=True)


def _ms_since(begun_s: float) -> float:
    return round((time.monotonic() - begun_s) * 1000, 3)
