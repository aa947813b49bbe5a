"""Runs that take place once in all processes, and the heartbeats of background processes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from service.database.pool.pool import ConnectionPool, Statement
from service.resilience.deadline import Deadline

_LEASE_RUN = Statement(
    "lease_run",
    """
    INSERT INTO background_runs (name, fence, leased_until)
    VALUES (%(name)s::text, 1, now() + %(lease_s)s::float8 * interval '1 second')
    ON CONFLICT (name) DO UPDATE SET
        fence = background_runs.fence + 1,
        leased_until = now() + %(lease_s)s::float8 * interval '1 second'
    WHERE background_runs.leased_until <= now()
      AND (background_runs.last_run_at IS NULL
           OR background_runs.last_run_at <= now() - %(every_s)s::float8 * interval '1 second')
    RETURNING fence, last_run_at, detail
    """,
)

_END_RUN = Statement(
    "end_run",
    """
    UPDATE background_runs SET leased_until = now(), last_run_at = now(), detail = %(detail)s::jsonb
    WHERE name = %(name)s::text AND fence = %(fence)s::bigint
    RETURNING 1
    """,
)

_HEARTBEAT = Statement(
    "heartbeat",
    """
    INSERT INTO background_runs (name, last_run_at) VALUES (%(name)s::text, now())
    ON CONFLICT (name) DO UPDATE SET last_run_at = now()
    RETURNING 1
    """,
)

_LAST_HEARTBEAT = Statement(
    "last_heartbeat", "SELECT last_run_at FROM background_runs WHERE name = %(name)s::text"
)


@dataclass(frozen=True, slots=True)
class BackgroundRun:
    """A background run leased to the caller; `fence` ends it."""

    name: str
    fence: int
    last_run_at: datetime | None
    detail: Mapping[str, Any]


class RunLocks:
    """Leases each named run to one process at a time."""

    def __init__(self, pool: ConnectionPool) -> None:
        self._pool = pool

    def lease_run(
        self, name: str, *, every_s: float, lease_s: float, deadline: Deadline
    ) -> BackgroundRun | None:
        """Lease a run that takes place once every `every_s` in all processes; None: not due, or leased."""
        rows = self._pool.run(
            _LEASE_RUN, {"name": name, "every_s": every_s, "lease_s": lease_s}, deadline
        )
        return BackgroundRun(name, *rows[0]) if rows else None

    def end_run(self, run: BackgroundRun, detail: Mapping[str, Any], deadline: Deadline) -> None:
        """Record the end of the run; without effect when another process has its lease."""
        self._pool.run(
            _END_RUN,
            {"name": run.name, "fence": run.fence, "detail": json.dumps(dict(detail))},
            deadline,
        )

    def heartbeat(self, name: str, deadline: Deadline) -> None:
        """Write a background process's heartbeat; health checks read its age."""
        self._pool.run(_HEARTBEAT, {"name": name}, deadline)

    def last_heartbeat(self, name: str, deadline: Deadline) -> datetime | None:
        """The time of the newest heartbeat of such a background process; None: never."""
        rows = self._pool.run(_LAST_HEARTBEAT, {"name": name}, deadline)
        return rows[0][0] if rows else None
