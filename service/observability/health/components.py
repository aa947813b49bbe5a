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

from service.observability.health.checks import Component, HealthResult, Status
from service.observability.metrics import slots

# Three missed beats of a reconciler that looks for work at least every 5 s.
RECONCILER_SILENT_S = 15.0
RECONCILER_DEAD_S = 60.0
# A scrape tests the slots too, for milliseconds.
SLOTS_WAIT_S = 1.0
DISK_WARN_RATIO = 0.10
DISK_FAIL_RATIO = 0.02
# Webhook signatures are valid for 300 s both ways; a clock far below that limit needs repair.
CLOCK_WARN_S = 2.0
CLOCK_FAIL_S = 60.0


def database(ping: Callable[[], object], statistics: Callable[[], Mapping[str, Any]]) -> Component:
    """`ping` sends the database a statement and raises when it gets no answer.

    Our answer does not prove that the workers get one: `warn` while their callers get no connection.
    """

    def check() -> HealthResult:
        begun_s = time.monotonic()
        ping()
        took_ms = _ms_since(begun_s)
        errors = statistics()["windows"]["1m"]["errors"]
        in_vain = errors["db_pool_timeouts"] + sum(errors["db_pool_refusals"].values())
        if in_vain:
            told = f"answers here, but the workers had no connection for {in_vain:.0f} callers in the last minute"
            return HealthResult("warn", told, observed=took_ms, unit="ms")
        return HealthResult("pass", observed=took_ms, unit="ms")

    return Component("database", "datastore", check, is_critical=True)


def provider(reach: Callable[[], object], statistics: Callable[[], Mapping[str, Any]]) -> Component:
    """`reach` calls the provider without moving money and raises when it cannot.

    Its answer does not prove that payments work: `warn` while the workers' breaker is not closed.
    """

    def check() -> HealthResult:
        begun_s = time.monotonic()
        reach()
        took_ms = _ms_since(begun_s)
        breaker = statistics()["now"]["breaker"]
        if breaker in ("open", "half_open"):
            told = f"answers here, but the workers' breaker is {breaker.replace('_', '-')}: payments are queued"
            return HealthResult("warn", told, observed=took_ms, unit="ms")
        return HealthResult("pass", observed=took_ms, unit="ms")

    return Component("provider", "component", check)


def reconciler(
    last_run_at: Callable[[], datetime | None],
    waiting: Callable[[], str | None],
    *,
    first_beat_within_s: float = RECONCILER_SILENT_S,
) -> Component:
    """`last_run_at` is the reconciler's newest heartbeat, None before the first one; `waiting` says
    in a sentence what it may not do yet, None where nothing is held.

    The first one is due within `first_beat_within_s`, so that a common start is not a failure.
    """
    awaited_until_s = time.monotonic() + first_beat_within_s

    def check() -> HealthResult:
        beat = last_run_at()
        silent_s = None if beat is None else round((datetime.now(UTC) - beat).total_seconds(), 1)
        if silent_s is not None and silent_s < RECONCILER_SILENT_S:
            held = waiting()
            return HealthResult("warn" if held else "pass", held or "", silent_s, "s")
        if time.monotonic() < awaited_until_s:
            return HealthResult("warn", "its first beat is awaited", observed=silent_s, unit="s")
        if silent_s is None:
            return HealthResult("fail", "it has never run: unknown payments are not being settled")
        status: Status = "warn" if silent_s < RECONCILER_DEAD_S else "fail"
        return HealthResult(status, f"silent for {silent_s:.0f} s", observed=silent_s, unit="s")

    return Component("reconciler", "component", check)


def disk(path: Path) -> Component:
    """Free disk space in the directories that this instance writes to."""

    def check() -> HealthResult:
        usage = shutil.disk_usage(path)
        free_ratio = round(usage.free / usage.total, 4)
        if free_ratio >= DISK_WARN_RATIO:
            return HealthResult("pass", observed=free_ratio, unit="ratio")
        status: Status = "warn" if free_ratio >= DISK_FAIL_RATIO else "fail"
        free_mb = usage.free // 1_000_000
        return HealthResult(status, f"{free_mb} MB are free", observed=free_ratio, unit="ratio")

    return Component("disk", "system", check)


def clock(database_now: Callable[[], datetime]) -> Component:
    """Our clock compared with the database's, which leases and schedules use."""

    def check() -> HealthResult:
        before = datetime.now(UTC)
        try:
            theirs = database_now()
        # Without the database there is no comparison; the database component reports the outage.
        except Exception as error:  # noqa: BLE001
            return HealthResult("warn", f"not compared: {type(error).__name__}")
        ours = before + (datetime.now(UTC) - before) / 2
        skew_s = round(abs((theirs - ours).total_seconds()), 3)
        if skew_s < CLOCK_WARN_S:
            return HealthResult("pass", observed=skew_s, unit="s")
        status: Status = "warn" if skew_s < CLOCK_FAIL_S else "fail"
        return HealthResult(status, f"{skew_s:.1f} s apart from the database", skew_s, "s")

    return Component("clock", "system", check)


def workers(expected: int) -> Component:
    """The data plane's processes on this machine, counted by their slots."""

    def check() -> HealthResult:
        if not slots.active():
            return HealthResult("warn", "this process is alone: it shares its metrics with nobody")
        held = slots.live_slots(slots.directory(), wait_s=SLOTS_WAIT_S)
        if held is None:
            return HealthResult("warn", "who is alive could not be told just now")
        alive = sum(slot.startswith("web-") for slot in held)
        if alive >= expected:
            return HealthResult("pass", observed=alive, unit="processes")
        status: Status = "warn" if alive else "fail"
        return HealthResult(status, f"{alive} of {expected} are alive", alive, "processes")

    return Component("workers", "system", check, is_critical=True)


def _ms_since(begun_s: float) -> float:
    return round((time.monotonic() - begun_s) * 1000, 3)
