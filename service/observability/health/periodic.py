"""Checks every component of the service periodically, and records since when its status holds.

Degraded is not down: only a critical component makes the whole `fail`.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from time import monotonic
from typing import Any

from service.observability.checks import CheckResult, ServiceCheck, Status
from service.observability.metrics import catalogue as metrics
from service.observability.redaction import clean_text

INTERVAL_S = 30.0
RECHECK_S = 5.0
# Longer than the limits of any single check; a check that is still running has failed.
CHECK_LIMIT_S = 5.0
# Requests for a fresh check within this time share one answer.
FRESH_FOR_S = 1.0
CHANGES_KEPT = 20

_AS_NUMBER: dict[Status, float] = {"pass": 1.0, "warn": 0.5, "fail": 0.0}

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _CheckState:
    """The known state of one check; guarded by the lock of HealthChecks."""

    check: ServiceCheck
    finding: CheckResult | None = None
    checked_at: datetime | None = None
    since: datetime | None = None
    latency_ms: float = 0.0
    last_error: str | None = None
    last_error_at: datetime | None = None
    changes: deque[tuple[datetime, Status]] = field(
        default_factory=lambda: deque(maxlen=CHANGES_KEPT)
    )
    # A check that hangs is not started a second time.
    thread: threading.Thread | None = None
    begun_s: float = 0.0


class HealthChecks:
    """Runs the checks in parallel; one that hangs delays no other, and only it fails."""

    def __init__(
        self,
        checks: Sequence[ServiceCheck],
        *,
        version: str,
        instance: str,
        interval_s: float = INTERVAL_S,
        check_limit_s: float = CHECK_LIMIT_S,
    ) -> None:
        self._states = [_CheckState(check) for check in checks]
        self._version = version
        self._instance = instance
        self._interval_s = interval_s
        self._check_limit_s = check_limit_s
        self._lock = threading.Lock()
        self._round = threading.Lock()
        self._round_at_s = float("-inf")
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Check now and then every `interval_s`, in a thread of this process."""
        self._thread = threading.Thread(target=self._run, name="health-checks", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(self._check_limit_s + 1)

    def check_now(self) -> None:
        """Run all checks, for at most `check_limit_s`; concurrent callers share a round."""
        with self._round:
            if monotonic() - self._round_at_s < FRESH_FOR_S:
                return
            for state in self._states:
                self._begin(state)
            end_s = monotonic() + self._check_limit_s
            for state in self._states:
                if state.thread is not None:
                    state.thread.join(max(0.0, end_s - monotonic()))
                    self._fail_if_still_out(state)
            self._round_at_s = monotonic()

    def report(self) -> dict[str, Any]:
        """The last results, in the format of the IETF draft health+json with our additions."""
        with self._lock:
            checks = {state.check.name: [_as_check(state)] for state in self._states}
            overall = _overall(self._states)
        return {
            "status": overall,
            "version": self._version,
            "serviceId": "holdfast",
            "description": "Holdfast, instance " + self._instance,
            "checks": checks,
        }

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self.check_now()
            # Without memory for a thread the round fails; the next one still runs.
            except Exception:
                log.exception("health.round_failed")
            # A component that does not pass is checked again soon, so that its recovery shows early.
            is_well = _overall(self._states) == "pass"
            self._stopping.wait(self._interval_s if is_well else min(RECHECK_S, self._interval_s))

    def _begin(self, state: _CheckState) -> None:
        if state.thread is not None and state.thread.is_alive():
            return
        state.begun_s = monotonic()
        name = f"health-{state.check.name}"
        state.thread = threading.Thread(target=self._check, args=(state,), name=name, daemon=True)
        state.thread.start()

    def _check(self, state: _CheckState) -> None:
        begun_s = state.begun_s
        try:
            finding = state.check.probe()
        # Any error in a check is the result of that check.
        except Exception as error:  # noqa: BLE001
            finding = CheckResult("fail", f"{type(error).__name__}: {error}")
        self._note(state, finding, monotonic() - begun_s)

    def _fail_if_still_out(self, state: _CheckState) -> None:
        if state.thread is not None and state.thread.is_alive():
            taken_s = monotonic() - state.begun_s
            self._note(state, CheckResult("fail", f"no answer after {taken_s:.0f} s"), taken_s)

    def _note(self, state: _CheckState, finding: CheckResult, taken_s: float) -> None:
        now = datetime.now(UTC)
        with self._lock:
            before = state.finding.status if state.finding else None
            state.finding, state.checked_at = finding, now
            state.latency_ms = round(taken_s * 1000, 3)
            if finding.status != before:
                state.since = now
                state.changes.append((now, finding.status))
            if finding.status != "pass":
                state.last_error, state.last_error_at = clean_text(finding.output), now
        name = state.check.name
        metrics.health_status.labels(name).set(_AS_NUMBER[finding.status])
        metrics.health_check_duration_seconds.labels(name).observe(taken_s)
        if before is not None and finding.status != before:
            level = logging.INFO if finding.status == "pass" else logging.WARNING
            fields = {"component": name, "status": finding.status, "reason": finding.output}
            log.log(level, "health.changed", extra=fields)


def _overall(states: Sequence[_CheckState]) -> Status:
    """`fail` when a critical component fails, `warn` when any component does not pass."""
    seen = [(state.check, state.finding.status) for state in states if state.finding]
    if any(check.is_critical and status == "fail" for check, status in seen):
        return "fail"
    # A component without a result does not count as healthy.
    is_well = len(seen) == len(states) and all(status == "pass" for _, status in seen)
    return "pass" if is_well else "warn"


def _as_check(state: _CheckState) -> dict[str, Any]:
    finding = state.finding or CheckResult("warn", "not checked yet")
    check: dict[str, Any] = {
        "componentId": state.check.name,
        "componentType": state.check.kind,
        "status": finding.status,
        "time": _text(state.checked_at),
        "since": _text(state.since),
        "latency_ms": state.latency_ms,
        "last_error": state.last_error,
        "last_error_at": _text(state.last_error_at),
        "critical": state.check.is_critical,
        "changes": [{"time": _text(time), "status": status} for time, status in state.changes],
    }
    if finding.observed is not None:
        check["observedValue"], check["observedUnit"] = finding.observed, finding.unit
    if finding.output:
        check["output"] = clean_text(finding.output)
    return check


def _text(moment: datetime | None) -> str | None:
    if moment is None:
        return None
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
