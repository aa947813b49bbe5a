"""A restart of the database, as far as it is ours to restart."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from pathlib import Path
from time import monotonic, sleep

from service.errors import Busy
from service.resilience.deadline import Deadline
from service.simulation.processes import children_of
from service.simulation.store import RehearsalStore

ANSWER_TIMEOUT_S = 1.0
# Crash recovery of a small database takes a fraction of a second; of any that is rehearsed, not this.
BACK_WITHIN_S = 20.0


class DatabaseRestart:
    """Crashes the PostgreSQL of a local run, and waits until it is back."""

    def __init__(self, store: RehearsalStore, home: Path) -> None:
        self._store = store
        self._home = home

    def carry_out(self) -> str | None:
        """What was done, in words. Raises Busy where the database does not answer beforehand.

        When one backend is killed, the server drops all others, replays its log and begins again.
        None, and nothing was done, where it is not this run's: other instances live on it.
        """
        pid = self._store.backend_pid(_deadline())
        postmaster = self._postmaster()
        if postmaster is None or pid not in children_of(postmaster):
            return None
        began_s = monotonic()
        os.kill(pid, signal.SIGKILL)
        while monotonic() - began_s < BACK_WITHIN_S:
            sleep(0.05)  # What has crashed does not say when it is back.
            with contextlib.suppress(Busy):
                self._store.backend_pid(_deadline())
                return f"PostgreSQL crashed and began again within {monotonic() - began_s:.1f} s"
        return f"PostgreSQL crashed and was not back after {BACK_WITHIN_S:.0f} s"

    def _postmaster(self) -> int | None:
        try:
            return int(json.loads((self._home / "run.json").read_text())["pids"]["postgres"])
        except (OSError, ValueError, KeyError):
            return None


def _deadline() -> Deadline:
    return Deadline.after(ANSWER_TIMEOUT_S)
