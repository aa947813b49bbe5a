"""Checks whether a drill may begin. Each failed check gives a reason, and one reason refuses it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from service.errors import Busy
from service.lab.drills.document import PreflightCheck
from service.lab.drills.expectations import Samples
from service.lab.drills.pair import COPY_POOL_SIZE
from service.lab.drills.plan import Plan
from service.lab.drills.store import DrillStore
from service.observability.checks import RECONCILER_BEHIND_S
from service.observability.metrics.catalogue import SLO_TARGETS
from service.observability.metrics.window import Window
from service.resilience.deadline import Deadline

# The fast burn rate of the paging alert: at 14.4 the budget of two days is spent in an hour.
BURN_RATE_MAX = 14.4
# Fewer answers than this are no basis for a service level.
ANSWERS_MIN = 20
# A healthy service settles well within this time; an older payment shows an existing problem.
UNKNOWN_AGE_MAX_S = 120.0
QUEUED_AGE_MAX_S = 300.0
RECONCILE_BEHIND_MAX_S = RECONCILER_BEHIND_S
# Connections left for operators who investigate a problem.
CONNECTIONS_SPARE = 4


@dataclass(frozen=True, kw_only=True)
class Preflight:
    """The checks before any fault is injected."""

    store: DrillStore
    read: Callable[[], Samples]
    statistics: Callable[[], Mapping[str, Any]]
    provider_key: str
    has_sandbox: bool
    control_path: Path | None
    instance_allowed: bool
    off_file: Path
    # Whether the database is the one that a local run started.
    is_local_database: Callable[[], bool] = lambda: False

    def check(self, plan: Plan, scope: str, deadline: Deadline) -> list[PreflightCheck]:
        """Every check, whether it holds or not."""
        window = Window({}, self.read(), 0.0)
        return [
            self._kill_switch(deadline),
            self._provider_key(),
            self._scope(plan, scope),
            self._sandbox(plan),
            self._local_database(plan),
            self._service_level(),
            _age("unknown_payments", window, "unknown_oldest_age_seconds", UNKNOWN_AGE_MAX_S),
            _age("queued_payments", window, "queued_oldest_age_seconds", QUEUED_AGE_MAX_S),
            _age("reconciler", window, "reconcile_due_oldest_age_seconds", RECONCILE_BEHIND_MAX_S),
            self._connections(scope, deadline),
        ]

    def kill_switch(self, deadline: Deadline) -> dict[str, Any]:
        """The state of the kill switch: in the database for all, or as a file on this machine."""
        if self.off_file.exists():
            reason = f"the file {self.off_file} exists"
            return {"engaged": True, "reason": reason, "by": "file", "at": None}
        return self.store.kill_switch(deadline)

    def _kill_switch(self, deadline: Deadline) -> PreflightCheck:
        switch = self.kill_switch(deadline)
        detail = f"Engaged: {switch['reason']}" if switch["engaged"] else "Not engaged."
        return PreflightCheck("lever", not switch["engaged"], detail)

    def _provider_key(self) -> PreflightCheck:
        is_live = self.provider_key.startswith(("sk_live_", "rk_live_"))
        detail = "It is a live key: real cards." if is_live else "It is a test key."
        return PreflightCheck("provider_key", not is_live, detail)

    def _scope(self, plan: Plan, scope: str) -> PreflightCheck:
        if scope not in plan.scopes:
            return PreflightCheck(
                "scope", False, f"{plan.name} has only: {', '.join(plan.scopes)}."
            )
        if scope == "instance" and not self.instance_allowed:
            return PreflightCheck(
                "scope", False, "Live links in production need an explicit setting."
            )
        if scope == "instance" and plan.needs_links and self.control_path is None:
            return PreflightCheck("scope", False, "This instance's links have no fault proxy.")
        return PreflightCheck("scope", True, f"{scope} is allowed here.")

    def _sandbox(self, plan: Plan) -> PreflightCheck:
        is_there = self.has_sandbox or not plan.needs_sandbox
        detail = "Only the sandbox provider injects faults." if not is_there else "As needed."
        return PreflightCheck("sandbox", is_there, detail)

    def _local_database(self, plan: Plan) -> PreflightCheck:
        is_there = not plan.needs_local_database or self.is_local_database()
        detail = "As needed." if is_there else "Only a local run's database can lose commits."
        return PreflightCheck("local_database", is_there, detail)

    def _service_level(self) -> PreflightCheck:
        payments = self.statistics()["windows"]["5m"]["payments"]
        ratio, total = payments["truthful_ratio"], payments["total"]
        if ratio is None or total < ANSWERS_MIN:
            return PreflightCheck(
                "service_level", True, "Too few payments in 5 minutes to measure."
            )
        burn = (1 - ratio) / (1 - SLO_TARGETS["truthful_answers"])
        return PreflightCheck(
            "service_level", burn < BURN_RATE_MAX, f"Burn rate {burn:.1f} over 5 minutes."
        )

    def _connections(self, scope: str, deadline: Deadline) -> PreflightCheck:
        needed = CONNECTIONS_SPARE + (2 * COPY_POOL_SIZE if scope == "pair" else 0)
        try:
            free = self.store.connections_free(deadline)
        except Busy as error:
            return PreflightCheck("database_connections", False, error.detail)
        detail = f"{free} free, {needed} needed."
        return PreflightCheck("database_connections", free >= needed, detail)


def reasons(checks: Sequence[PreflightCheck]) -> list[str]:
    """The reasons against a start, as text."""
    return [f"{check.name}: {check.detail}" for check in checks if not check.ok]


def _age(name: str, window: Window, gauge: str, most_s: float) -> PreflightCheck:
    age_s = window.value(gauge) or 0.0
    return PreflightCheck(
        name, age_s <= most_s, f"The oldest is {age_s:.0f} s old; the limit is {most_s:.0f} s."
    )
