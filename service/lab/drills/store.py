"""Drills in PostgreSQL: reports, audit rows, and the lease that admits one drill at a time."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from service.database.pool.pool import ConnectionPool, Statement
from service.ids import new_id
from service.lab.drills.document import DrillReport, RunSummary, from_json, to_json
from service.payments import audit
from service.payments.audit import Actor, AuditLog, Entry
from service.payments.merchants import DRILL_MERCHANT_ID
from service.resilience.deadline import Deadline

# The lease is renewed while a run lives; a killed run blocks the next one for at most this long.
LEASE_S = 15.0
_LEASE, _KILL_SWITCH = "rehearsal", "rehearsal_lever"

_TAKE_LEASE = Statement(
    "rehearsal_take_lease",
    """
    INSERT INTO background_runs (name, fence, leased_until, detail)
    VALUES (%(name)s::text, 1, now() + %(lease_s)s::float8 * interval '1 second', %(detail)s::jsonb)
    ON CONFLICT (name) DO UPDATE SET
        fence = background_runs.fence + 1, detail = excluded.detail,
        leased_until = excluded.leased_until
    WHERE background_runs.leased_until <= now()
       OR background_runs.detail = excluded.detail
    RETURNING 1
    """,
)
_END_LEASE = Statement(
    "rehearsal_end_lease",
    """
    UPDATE background_runs SET leased_until = now(), last_run_at = now()
    WHERE name = %(name)s::text AND detail = %(detail)s::jsonb RETURNING 1
    """,
)
_SET_LEVER = Statement(
    "rehearsal_set_lever",
    """
    INSERT INTO background_runs (name, last_run_at, detail)
    VALUES (%(name)s::text, now(), %(detail)s::jsonb)
    ON CONFLICT (name) DO UPDATE SET last_run_at = now(), detail = excluded.detail RETURNING 1
    """,
)
_READ_LEVER = Statement(
    "rehearsal_read_lever",
    "SELECT detail, last_run_at FROM background_runs WHERE name = %(name)s::text",
)
_MAKE_TENANT = Statement(
    "rehearsal_make_tenant",
    """
    INSERT INTO merchants (merchant_id, name) VALUES (%(merchant_id)s::uuid, 'drill')
    ON CONFLICT (merchant_id) DO NOTHING RETURNING 1
    """,
)
# Without a lease holder no run is alive: every run without an end was killed.
_CLOSE_LOST = Statement(
    "rehearsal_close_lost",
    """
    UPDATE rehearsals SET ended_at = now(), verdict = 'ABORTED',
        report = report || '{"status": "ended", "phase": "ended", "verdict": "ABORTED",
            "summary": "The process that ran it was killed; its faults ended with it."}'
    WHERE ended_at IS NULL AND NOT EXISTS (
        SELECT 1 FROM background_runs WHERE name = %(name)s::text AND leased_until > now()
    )
    RETURNING 1
    """,
)
_BEGIN = Statement(
    "rehearsal_begin",
    """
    INSERT INTO rehearsals (rehearsal_id, kind, name, scope, requested_by, reason, report)
    VALUES (%(id)s::uuid, %(kind)s::text, %(name)s::text, %(scope)s::text,
            %(requested_by)s::text, %(reason)s::text, %(report)s::jsonb)
    RETURNING 1
    """,
)
_END = Statement(
    "rehearsal_end",
    """
    UPDATE rehearsals SET ended_at = now(), verdict = %(verdict)s::text, report = %(report)s::jsonb
    WHERE rehearsal_id = %(id)s::uuid RETURNING 1
    """,
)
_FIND = Statement(
    "rehearsal_find", "SELECT report FROM rehearsals WHERE rehearsal_id = %(id)s::uuid"
)
_RECENT = Statement(
    "rehearsal_recent",
    """
    SELECT report - 'sides' - 'timeline' - 'progress' - 'preflight' FROM rehearsals
    ORDER BY started_at DESC LIMIT %(limit)s::integer
    """,
)
_LAST = Statement(
    "rehearsal_last",
    """
    SELECT DISTINCT ON (name) name, report - 'sides' - 'timeline' - 'progress' - 'preflight'
    FROM rehearsals WHERE kind = 'drill' AND verdict IS NOT NULL ORDER BY name, ended_at DESC
    """,
)
_TREND = Statement(
    "rehearsal_trend",
    """
    SELECT name, verdict, started_at FROM (
        SELECT name, verdict, started_at,
               row_number() OVER (PARTITION BY name ORDER BY started_at DESC) AS back
        FROM rehearsals WHERE kind = 'drill' AND verdict IS NOT NULL
    ) AS runs
    WHERE back <= %(most)s::integer ORDER BY name, started_at
    """,
)
# Ids are ordered by time, so the query reads only the tenant's payments since the run began.
_PAYMENTS = Statement(
    "rehearsal_payments",
    """
    SELECT payment_id, status, amount, currency, provider_ref, metadata ->> 'side'
    FROM payments
    WHERE merchant_id = %(merchant_id)s::uuid AND payment_id >= %(since)s::uuid
      AND metadata ->> 'drill' = %(run)s::text
    ORDER BY payment_id
    """,
)
_CONNECTIONS = Statement(
    "rehearsal_connections",
    """
    SELECT (SELECT sum(setting::int * CASE name WHEN 'max_connections' THEN 1 ELSE -1 END)
            FROM pg_settings WHERE name IN
            ('max_connections', 'superuser_reserved_connections', 'reserved_connections'))
         - (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend')
    """,
)
_BACKEND_PID = Statement("rehearsal_backend_pid", "SELECT pg_backend_pid()")


class DrillStore:
    """The drills' statements; several ops planes may share the database."""

    def __init__(self, pool: ConnectionPool) -> None:
        self._pool = pool

    def take_lease(self, run_id: str, deadline: Deadline) -> bool:
        """Take or renew the lease; False while a run of any instance holds it."""
        params = {"name": _LEASE, "lease_s": LEASE_S, "detail": json.dumps({"run": run_id})}
        return bool(self._pool.run(_TAKE_LEASE, params, deadline))

    def end_lease(self, run_id: str, deadline: Deadline) -> None:
        params = {"name": _LEASE, "detail": json.dumps({"run": run_id})}
        self._pool.run(_END_LEASE, params, deadline)

    def kill_switch(self, deadline: Deadline) -> dict[str, Any]:
        """Whether drills are blocked on all instances, and by which key."""
        rows = self._pool.run(_READ_LEVER, {"name": _KILL_SWITCH}, deadline)
        if not rows:
            return {"engaged": False, "reason": None, "by": None, "at": None}
        detail, at = rows[0]
        return {**detail, "at": moment(at)}

    def set_kill_switch(
        self,
        *,
        engaged: bool,
        reason: str,
        by: str,
        deadline: Deadline,
        actor: Actor | None = None,
    ) -> None:
        """Write the kill switch and its audit row, both or neither."""
        detail = {"engaged": engaged, "reason": reason, "by": by}
        action = "kill_switch.engaged" if engaged else "kill_switch.released"
        audit.run_audited(
            self._pool,
            _SET_LEVER,
            {"name": _KILL_SWITCH, "detail": json.dumps(detail)},
            deadline,
            actor=actor or Actor("api_key", by),
            entry=lambda _: Entry(action, detail={"reason": reason}),
        )

    def make_tenant(self, deadline: Deadline) -> None:
        self._pool.run(_MAKE_TENANT, {"merchant_id": DRILL_MERCHANT_ID}, deadline)

    def begin(self, report: DrillReport, deadline: Deadline, *, actor: Actor | None = None) -> None:
        """Write the run and its audit row, both or neither, before any fault is injected."""
        detail = {name: getattr(report, name) for name in ("kind", "name", "scope", "reason")}
        params = {
            **detail,
            "requested_by": report.requested_by,
            "id": str(_uuid_of(report.id)),
            "report": json.dumps(to_json(report)),
        }
        audit.run_audited(
            self._pool,
            _BEGIN,
            params,
            deadline,
            actor=actor or Actor("api_key", report.requested_by),
            entry=lambda _: Entry("drill.started", target=report.id, detail=detail),
        )

    def close_lost(self, deadline: Deadline) -> int:
        """End the runs of killed processes after their lease expired; returns their number."""
        return len(self._pool.run(_CLOSE_LOST, {"name": _LEASE}, deadline))

    def end(self, report: DrillReport, deadline: Deadline) -> None:
        params = {
            "id": str(_uuid_of(report.id)),
            "verdict": report.verdict,
            "report": json.dumps(to_json(report)),
        }
        detail = {
            "verdict": report.verdict,
            "summary": report.summary,
            "requested_by": report.requested_by,
        }
        audit.run_audited(
            self._pool,
            _END,
            params,
            deadline,
            actor=audit.SERVICE,
            entry=lambda _: Entry("drill.ended", target=report.id, detail=detail),
        )

    def audit(
        self, actor: Actor, action: str, run_id: str | None, detail: Mapping[str, Any], by: Deadline
    ) -> None:
        """Audit an act that changes no row of ours: a refused drill, or a request to stop one."""
        AuditLog(self._pool).write(actor, Entry(f"drill.{action}", None, run_id, detail), by)

    def find(self, run_id: str, deadline: Deadline) -> dict[str, Any] | None:
        """A run's report in its last stored version; None: no such run, or its report was erased."""
        uuid = _uuid_of(run_id)
        rows = self._pool.run(_FIND, {"id": str(uuid)}, deadline) if uuid else []
        # Empty: the report named a customer whose data was erased.
        return rows[0][0] or None if rows else None

    def recent(self, limit: int, deadline: Deadline) -> list[RunSummary]:
        """The newest runs; one whose report was erased is left out."""
        rows = self._pool.run(_RECENT, {"limit": limit}, deadline)
        return [from_json(RunSummary, row[0]) for row in rows if row[0]]

    def last_verdicts(self, deadline: Deadline) -> dict[str, RunSummary]:
        """The newest ended drill of each name."""
        rows = self._pool.run(_LAST, {}, deadline)
        return {name: from_json(RunSummary, report) for name, report in rows if report}

    def trends(self, most: int, deadline: Deadline) -> dict[str, list[dict[str, Any]]]:
        """The newest verdicts of each drill, oldest first."""
        trends: dict[str, list[dict[str, Any]]] = {}
        for name, verdict, at in self._pool.run(_TREND, {"most": most}, deadline):
            trends.setdefault(name, []).append({"verdict": verdict, "at": moment(at)})
        return trends

    def payments(
        self, run_id: str, since: datetime, deadline: Deadline
    ) -> list[tuple[UUID, str, int, str, str | None, str]]:
        """(id, status, amount, currency, provider reference, target) of a run's payments."""
        since_ms = int((since - timedelta(seconds=60)).timestamp() * 1000)
        params = {
            "merchant_id": DRILL_MERCHANT_ID,
            "since": f"{since_ms:012x}" + "7" + "0" * 19,
            "run": run_id,
        }
        return [
            (row[0], row[1], int(row[2]), row[3], row[4], row[5])
            for row in self._pool.run(_PAYMENTS, params, deadline)
        ]

    def connections_free(self, deadline: Deadline) -> int:
        """The number of connections that the database still has for ordinary roles."""
        return int(self._pool.run(_CONNECTIONS, {}, deadline)[0][0])

    def backend_pid(self, deadline: Deadline) -> int:
        """The backend process id of one of our own connections."""
        return int(self._pool.run(_BACKEND_PID, {}, deadline)[0][0])


def moment(at: datetime | None) -> str | None:
    """A time in the format of all documents."""
    return None if at is None else at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def new_run_id() -> str:
    return f"run_{new_id().hex}"


def _uuid_of(run_id: str) -> UUID | None:
    digits = run_id.removeprefix("run_")
    is_ours = len(digits) == 32 and len(run_id) == 36 and set(digits) <= set("0123456789abcdef")
    return UUID(hex=digits) if is_ours else None
