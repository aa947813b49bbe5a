"""A restart of the database, where it is a local run's own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from pathlib import Path
from time import monotonic, sleep

from service.errors import Busy
from service.lab.drills.processes import children_of
from service.lab.drills.store import DrillStore
from service.resilience.deadline import Deadline

ANSWER_TIMEOUT_S = 1.0
# Crash recovery of a small database takes a fraction of a second; more than this is a failure.
BACK_WITHIN_S = 20.0


class DatabaseRestart:
    """Crashes the PostgreSQL of a local run, and waits for its return."""

    def __init__(self, store: DrillStore, home: Path) -> None:
        self._store = store
        self._home = home

    def carry_out(self) -> str | None:
        """A description of what was done. Raises Busy where the database does not answer before it.

        After the kill of one backend the server ends all others, replays its log and starts again.
        None without any action where the database is not this run's: other instances use it.
        """
        pid = self._store.backend_pid(_deadline())
        postmaster = self._postmaster()
        if postmaster is None or pid not in children_of(postmaster):
            return None
        began_s = monotonic()
        os.kill(pid, signal.SIGKILL)
        while monotonic() - began_s < BACK_WITHIN_S:
            sleep(0.05)  # PostgreSQL sends no signal at the end of its recovery.
            with contextlib.suppress(Busy):
                self._store.backend_pid(_deadline())
                return f"PostgreSQL crashed and was back after {monotonic() - began_s:.1f} s"
        return f"PostgreSQL crashed and was not back within {BACK_WITHIN_S:.0f} s"

    def _postmaster(self) -> int | None:
        try:
            return int(json.loads((self._home / "run.json").read_text())["pids"]["postgres"])
        except (OSError, ValueError, KeyError):
            return None


def _deadline() -> Deadline:
    return Deadline.after(ANSWER_TIMEOUT_S)
