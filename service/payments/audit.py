"""The audit log: one row for each privileged act, written in the transaction of the act."""

from __future__ import annotations

import json
import os
import pwd
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from time import sleep
from typing import Any, Literal, TypeVar
from uuid import UUID

from service.database.pool.pool import Checkout, ConnectionPool, Statement
from service.database.pool.statements import Params, Row, is_collision
from service.errors import DatabaseUnavailable
from service.ids import first_id_at, new_id
from service.resilience.deadline import Deadline

T = TypeVar("T")

# A page for a person; `before` reads the next one.
READ_MAX = 1000
# Texts of callers are cut to this length: the log names an act, it does not store documents.
TEXT_LENGTH_MAX = 2000
# An id is made by the clock of an instance, `at` by the database's.
CLOCKS_APART = timedelta(days=1)
# After a collision the second try nearly always succeeds; the third covers another collision.
TRIES = 3


@dataclass(frozen=True, slots=True)
class Actor:
    """The person or program that acts, and the place that the act came from."""

    kind: Literal["api_key", "cli", "service"]
    name: str
    label: str | None = None
    address: str | None = None
    request_id: str | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    """One act: `merchant_id` is the owner of the target; `detail` never holds a secret."""

    action: str
    merchant_id: UUID | None = None
    target: str | None = None
    detail: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Record:
    """One row of the log."""

    audit_id: UUID
    at: datetime
    action: str
    merchant_id: UUID | None
    actor_kind: str
    actor: str
    actor_label: str | None
    address: str | None
    request_id: str | None
    target: str | None
    detail: Mapping[str, Any]


# The actor of the service's own acts, such as a drill's keys.
SERVICE = Actor("service", "holdfast")


def cli_actor() -> Actor:
    """The operating-system user of this process; the kernel's answer, not the environment's."""
    uid = os.getuid()
    try:
        name = pwd.getpwuid(uid).pw_name
    except KeyError:
        name = f"uid {uid}"
    # sudo sets it, but any user can set it too: only a hint beside the name.
    sudo_user = os.environ.get("SUDO_USER")
    label = f"sudo from {sudo_user[:64]}" if sudo_user else None
    return Actor("cli", name, label=label, address=socket.gethostname())


WRITE_SQL = """
    INSERT INTO audit_log (audit_id, action, merchant_id, actor_kind, actor, actor_label, address,
                           request_id, target, detail)
"""
WRITE_VALUES = """
    %(audit_id)s::uuid, %(action)s::text, %(merchant_id)s::uuid, %(actor_kind)s::text,
    %(actor)s::text, %(actor_label)s::text, %(address)s::text, %(request_id)s::text,
    %(target)s::text, %(detail)s::jsonb
"""
_WRITE = Statement("audit_write", f"{WRITE_SQL} VALUES ({WRITE_VALUES}) RETURNING 1")
_COLUMNS = """
    audit_id, at, action, merchant_id, actor_kind, actor, actor_label, address, request_id, target,
    detail
"""
_FILTER = """
    (%(action)s::text IS NULL OR action = %(action)s::text
     OR starts_with(action, %(action)s::text || '.'))
    AND (%(actor)s::text IS NULL OR actor = %(actor)s::text)
    AND (%(target)s::text IS NULL OR target = %(target)s::text)
    AND (%(merchant_id)s::uuid IS NULL OR merchant_id = %(merchant_id)s::uuid)
    AND (%(since)s::timestamptz IS NULL OR at >= %(since)s::timestamptz)
    AND (%(until)s::timestamptz IS NULL OR at < %(until)s::timestamptz)
    AND (%(since_id)s::uuid IS NULL OR audit_id >= %(since_id)s::uuid)
    AND (%(before)s::uuid IS NULL OR audit_id < %(before)s::uuid)
    ORDER BY audit_id DESC LIMIT %(limit)s::integer
"""
# `rehearsal_audit` has the drills' acts that versions before this table wrote.
_READ = Statement(
    "audit_read",
    f"""
    SELECT * FROM (
        (SELECT {_COLUMNS} FROM audit_log WHERE {_FILTER})
        UNION ALL
        (SELECT * FROM (
            SELECT audit_id, at, 'drill.' || action AS action, NULL::uuid AS merchant_id,
                   'api_key' AS actor_kind, requested_by AS actor, NULL AS actor_label,
                   NULL AS address, NULL AS request_id,
                   'run_' || replace(rehearsal_id::text, '-', '') AS target, detail
            FROM rehearsal_audit
        ) AS old WHERE {_FILTER})
    ) AS acts ORDER BY audit_id DESC LIMIT %(limit)s::integer
    """,  # Only our own column list and filter are inserted.
)


def write(transaction: Checkout, actor: Actor, entry: Entry) -> None:
    """Add the act's row inside the transaction of the act."""
    transaction.run(_WRITE, params_of(actor, entry))


def write_with_cursor(cursor: Any, actor: Actor, entry: Entry) -> None:
    """The same for code with its own cursor, such as `migrate`."""
    cursor.execute(_WRITE.sql, params_of(actor, entry))


def run_audited(
    pool: ConnectionPool,
    statement: Statement,
    params: Params,
    deadline: Deadline,
    *,
    actor: Actor,
    entry: Callable[[Sequence[Row]], Entry | None],
) -> list[Row]:
    """Run one statement and write its act, both or neither.

    No audit row is written without result rows, or where `entry` returns None for them.
    """

    def act(transaction: Checkout) -> list[Row]:
        rows = transaction.run(statement, params)
        done = entry(rows) if rows else None
        if done is not None:
            write(transaction, actor, done)
        return rows

    return in_transaction(pool, act, deadline)


def in_transaction(pool: ConnectionPool, act: Callable[[Checkout], T], deadline: Deadline) -> T:
    """Run `act` as one transaction, again after a collision: it must read all its data inside."""

    def once() -> T:
        with pool.transaction(deadline) as transaction:
            return act(transaction)

    return again_after_collision(once, deadline)


def again_after_collision(once: Callable[[], T], deadline: Deadline) -> T:
    """Call `once`, and again after a serialization failure, which aborts the transaction."""
    for tries_left in reversed(range(TRIES)):
        try:
            return once()
        except DatabaseUnavailable as error:
            if not tries_left or not is_collision(error.__cause__):
                raise
            # The colliding transactions must not collide again.
            sleep(min(deadline.remaining_s(), 0.005 * (TRIES - tries_left)))
    raise AssertionError("the last try returns or raises")


class AuditLog:
    """Reads the log."""

    def __init__(self, pool: ConnectionPool) -> None:
        self._pool = pool

    def write(self, actor: Actor, entry: Entry, deadline: Deadline) -> None:
        """Add an act that changes none of our tables, such as a refused drill."""
        self._pool.run(_WRITE, params_of(actor, entry), deadline)

    def read(
        self,
        deadline: Deadline,
        *,
        action: str | None = None,
        actor: str | None = None,
        target: str | None = None,
        merchant_id: UUID | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        before: UUID | None = None,
        limit: int = 100,
    ) -> list[Record]:
        """The acts, newest first; `action` is a whole name or the part before its dot."""
        rows = self._pool.run(
            _READ,
            {
                "action": action,
                "actor": actor,
                "target": target,
                "merchant_id": merchant_id,
                "since": since,
                "since_id": None if since is None else first_id_at(since - CLOCKS_APART),
                "until": until,
                "before": before,
                "limit": min(limit, READ_MAX),
            },
            deadline,
        )
        return [Record(*row) for row in rows]


def params_of(actor: Actor, entry: Entry) -> dict[str, Any]:
    """The values of WRITE_VALUES, with a new id."""
    merchant_id = entry.merchant_id
    return {
        "audit_id": new_id(),
        "action": entry.action,
        "merchant_id": merchant_id,
        "actor_kind": actor.kind,
        "actor": _clean(actor.name),
        "actor_label": _clean(actor.label),
        "address": _clean(actor.address),
        "request_id": _clean(actor.request_id),
        "target": _clean(entry.target),
        "detail": json.dumps(_clean(dict(entry.detail)), allow_nan=False, default=str),
    }


def _clean(value: Any) -> Any:
    """The value without NUL and lone surrogates, which PostgreSQL refuses; long texts are cut."""
    if isinstance(value, str):
        text = value.replace("\0", "\N{REPLACEMENT CHARACTER}")
        return text.encode(errors="replace").decode()[:TEXT_LENGTH_MAX]
    if isinstance(value, Mapping):
        return {_clean(str(name)): _clean(item) for name, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_clean(item) for item in value]
    return value
