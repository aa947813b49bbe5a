"""Checks the invariants periodically: a slice at a time, each rule separately, with its age.

Each rule has three passes. The quick pass reads rows changed since shortly before the last quick
pass; the whole pass reads the window in slices, over several turns; the walk reads one slice a turn
of payments of any age. The position of each pass is stored in the database, so that processes share
the work and a crash loses one slice.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from time import monotonic
from typing import Any

from service.database.pool.pool import ConnectionPool, Statement
from service.errors import Busy
from service.observability.metrics import catalogue as metrics
from service.payments.settling.invariants import (
    RULES,
    SLICE_ROWS,
    WINDOW,
    Place,
    check_slice,
)
from service.payments.settling.run_locks import BackgroundRun, RunLocks
from service.resilience.deadline import Deadline

log = logging.getLogger(__name__)

# The interval of a rule's turns, and the time limits of one turn and of one statement.
EVERY_S = 60.0
TURN_S = 5.0
SLICE_TIMEOUT_S = 2.0
LEASE_S = 30.0
# Commits are late, and clocks differ.
OVERLAP = timedelta(minutes=2)
# After a pause the whole pass reads the older rows.
QUICK_WINDOW = timedelta(minutes=10)
LOOK_EVERY_S = 5.0
SLICE_ROWS_MIN = 100
# The walk begins with the first payment there is.
_EVER = datetime.fromtimestamp(0, UTC)

_SAVE = Statement(
    "invariant_save",
    """
    UPDATE background_runs SET detail = %(detail)s::jsonb, last_run_at = now(),
        leased_until = now()
    WHERE name = %(name)s::text AND fence = %(fence)s::bigint
    RETURNING 1
    """,
)
_ALL = Statement(
    "invariant_all",
    "SELECT name, detail FROM background_runs WHERE name = ANY(%(names)s::text[])",
)


@dataclass(frozen=True, slots=True)
class RuleState:
    """The result of one rule: its number of violations, and the time at which all rows were read."""

    violations: int
    checked_at: datetime | None


class InvariantChecks:
    """Gives each due rule a turn; any number of processes may run it."""

    def __init__(self, pool: ConnectionPool, locks: RunLocks, *, turn_s: float = TURN_S) -> None:
        self._pool = pool
        self._locks = locks
        self._turn_s = turn_s
        # For a rule that was never checked, the age grows from here.
        self._began = datetime.now(UTC)
        self._look_at_s = 0.0

    def run(self, deadline: Deadline) -> int:
        """One turn for each due rule, the cheapest first; returns their number."""
        if monotonic() < self._look_at_s:
            return 0
        self._look_at_s = monotonic() + LOOK_EVERY_S
        return sum(self._turn(rule, deadline) for rule in RULES)

    def show(self, deadline: Deadline) -> None:
        """Set the gauges from the results of all processes."""
        states = self.states(deadline)
        for rule, state in states.items():
            metrics.invariant_violations.labels(rule=rule).set(state.violations)
        oldest = min(state.checked_at or self._began for state in states.values())
        age_s = max(0.0, (datetime.now(UTC) - oldest).total_seconds())
        metrics.invariant_age_seconds.set(age_s)

    def states(self, deadline: Deadline) -> Mapping[str, RuleState]:
        """The last result of every rule."""
        names = {_name(rule): rule for rule in RULES}
        rows = self._pool.run(_ALL, {"names": list(names)}, deadline)
        details = {names[name]: detail for name, detail in rows}
        return {rule: _state(details.get(rule, {})) for rule in RULES}

    def _turn(self, rule: str, deadline: Deadline) -> bool:
        run = self._locks.lease_run(
            _name(rule), every_s=EVERY_S, lease_s=LEASE_S, deadline=deadline
        )
        if run is None:
            return False
        detail = dict(run.detail)
        try:
            self._check(rule, detail, Deadline.after(self._turn_s))
        except Busy as error:
            # Its age shows the failure, and the next rule has its own turn; a slice of half the size may work.
            detail["rows"] = max(int(detail.get("rows", SLICE_ROWS)) // 2, SLICE_ROWS_MIN)
            log.warning("invariant.not_checked", extra={"rule": rule, "code": error.code})
        self._save(run, detail)
        if found := _state(detail).violations:
            log.error("invariant.violated", extra={"rule": rule, "rows": found})
        return True

    def _check(self, rule: str, detail: dict[str, Any], turn: Deadline) -> None:
        """Run the quick pass, then as much of the whole one as the turn allows; writes `detail`."""
        began = datetime.now(UTC)
        rows = int(detail.get("rows", SLICE_ROWS))
        quick_at = _moment(detail.get("quick_at")) or began - QUICK_WINDOW
        since = max(quick_at - OVERLAP, began - QUICK_WINDOW)
        quick = self._quick(rule, since, turn, rows)
        if quick is not None:
            detail["quick"], detail["quick_at"] = quick, began.isoformat()
        self._walk(rule, detail, rows)
        # At least one slice a turn, with its own time limit: a short turn is slow but never stuck.
        while True:
            if not detail.get("pass_began"):
                detail |= {
                    "pass_began": began.isoformat(),
                    "since": (began - WINDOW).isoformat(),
                    "place": None,
                    "found": 0,
                }
            place = Place(*detail["place"]) if detail["place"] else Place()
            violations, after = check_slice(
                self._pool,
                rule,
                place,
                Deadline.after(SLICE_TIMEOUT_S),
                since=_moment(detail["since"]) or began - WINDOW,
                rows=rows,
            )
            detail["found"] += violations
            if after is None:
                detail |= {"whole": detail["found"], "checked_at": detail.pop("pass_began")}
                detail["rows"] = min(2 * rows, SLICE_ROWS)
                return
            detail["place"] = [after.merchant_id, after.last_id]
            if turn.remaining_s() <= 0:
                return

    def _quick(self, rule: str, since: datetime, turn: Deadline, rows: int) -> int | None:
        """Violations among recently changed rows; None: too many for a turn, the whole pass reads them."""
        place: Place | None = Place()
        total = 0
        # At most half of the turn: the whole pass must always advance.
        end = turn.within(self._turn_s / 2)
        while place is not None:
            if end.remaining_s() <= 0:
                return None
            violations, place = check_slice(
                self._pool,
                rule,
                place,
                Deadline.after(SLICE_TIMEOUT_S),
                since=since,
                rows=rows,
                of_changes=True,
            )
            total += violations
        return total

    def _walk(self, rule: str, detail: dict[str, Any], rows: int) -> None:
        """One slice of the payments of any age; the walk has no age, and so no alert."""
        place = Place(*detail["walk_place"]) if detail.get("walk_place") else Place()
        found, after = check_slice(
            self._pool, rule, place, Deadline.after(SLICE_TIMEOUT_S), since=_EVER, rows=rows
        )
        found += int(detail.get("walk_found") or 0)
        if after is None:
            detail |= {"walk": found, "walk_found": 0, "walk_place": None}
        else:
            detail |= {"walk_found": found, "walk_place": [after.merchant_id, after.last_id]}

    def _save(self, run: BackgroundRun, detail: Mapping[str, Any]) -> None:
        parameters = {"name": run.name, "fence": run.fence, "detail": json.dumps(detail)}
        self._pool.run(_SAVE, parameters, Deadline.after(SLICE_TIMEOUT_S))


def _name(rule: str) -> str:
    return f"invariant {rule}"


def _state(detail: Mapping[str, Any]) -> RuleState:
    # Violations found by a running pass count at once; what the last whole one found, until it ends.
    names = ["whole", "quick", "walk", "walk_found"]
    if detail.get("pass_began"):
        names.append("found")
    found = max(int(detail.get(name) or 0) for name in names)
    return RuleState(found, _moment(detail.get("checked_at")))


def _moment(text: Any) -> datetime | None:
    return datetime.fromisoformat(text) if isinstance(text, str) else None
