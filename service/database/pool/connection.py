"""One database connection: how it is opened, whether it is alive, and the state of its session."""

from __future__ import annotations

import random
import select
from time import monotonic
from types import CodeType
from typing import Any
from uuid import UUID

import psycopg2
from psycopg2.extensions import (
    AsIs,
    make_dsn,
    new_array_type,
    new_type,
    parse_dsn,
    register_adapter,
    register_type,
)
from psycopg2.extensions import connection as PsycopgConnection

from service.database.environment import leave_environment

# libpq accepts whole seconds only; the limit covers the handshake too, so a stalled attempt ends
# well before the two seconds in which the service promises to be back.
CONNECT_TIMEOUT_S = 1
# A dead peer is noticed after 10 + 3 x 3 s of silence, unacknowledged bytes after 5 s; both are
# only a safety net below the deadlines. libpq ignores all of them on a unix socket.
KEEPALIVE = {
    "keepalives": "1",
    "keepalives_idle": "10",
    "keepalives_interval": "3",
    "keepalives_count": "3",
    "tcp_user_timeout": "5000",
}
# A connection that was released this recently is checked out without a test: asking the kernel
# costs as much as all the rest of a checkout.
FRESH_S = 0.01
# After a longer silence the server is asked: a firewall or a partition gives no sign.
IDLE_CHECK_S = 0.5


# The settings that our statements and psycopg2's quoting rely on, whatever the defaults of the
# database or the role are. The server reports these and the encoding, so a pooler in transaction
# mode keeps them for us; the rest is set on the role (role_settings.py).
SESSION = {
    "DateStyle": "ISO, MDY",
    "TimeZone": "UTC",
    "standard_conforming_strings": "on",
}


def _uuid_of(text: str | bytes | None, _cursor: object) -> UUID | None:
    return None if text is None else UUID(str(text))


# Rows and values hold UUIDs as such. The SQL casts each value, so a quoted text is enough.
_UUID = new_type((2950,), "UUID", _uuid_of)
_UUIDS = new_array_type((2951,), "UUIDS", _UUID)


def _quoted(value: UUID) -> AsIs:
    return AsIs(f"'{value}'")


class Connection(PsycopgConnection):
    """A psycopg2 connection in autocommit mode. Only its holder uses its fields, without a lock."""

    # The pool's generation that opened it: a connection of an older one is closed at checkout.
    generation: int
    # Replaced after this, which bounds the server's memory and follows a changed DNS name.
    expires_at_s: float
    # Until then it may be checked out without a test; never later than it expires.
    fresh_until_s: float
    idle_since_s: float
    # Whether the server's session is this connection's own, so that it keeps what is prepared.
    may_prepare: bool
    # The EXECUTE of each statement that was prepared on this connection, by its SQL.
    prepared: dict[str, str]
    # Place and time of the checkout: a code object and an offset keep no frame (and no locals) alive.
    taken_at_s: float
    taken_code: CodeType | None
    taken_offset: int
    is_leak_unreported: bool
    # Its last statement lost the connection, whatever libpq reports.
    is_broken: bool
    # Seconds that its present holder waited in the queue.
    wait_s: float

    def adopt(self, generation: int, lifetime_s: float, *, may_prepare: bool) -> None:
        """Start its lifetime in a pool, up to a tenth shorter, so that not all end at once."""
        self.autocommit = True
        now = monotonic()
        self.generation = generation
        self.expires_at_s = now + lifetime_s * (1 - 0.1 * random.random())  # noqa: S311
        self.idle_since_s = now
        self.fresh_until_s = min(now + FRESH_S, self.expires_at_s)
        self.may_prepare = may_prepare
        self.prepared = {}
        self.taken_at_s = 0.0
        self.taken_code = None
        self.taken_offset = 0
        self.is_leak_unreported = True
        self.is_broken = False
        self.wait_s = 0.0

    @property
    def has_hung_up(self) -> bool:
        """True when there is data to read: an idle server sends nothing but its final message."""
        if self.closed:
            return True
        poll = select.poll()
        poll.register(self.fileno(), select.POLLIN | select.POLLPRI)
        return bool(poll.poll(0))

    @property
    def is_direct(self) -> bool:
        """Whether no pooler is between: the server's process is the one that libpq was told.

        One round trip. A pooler invents the process id of its clients, in every mode.
        """
        with self.cursor() as cursor:
            cursor.execute("SELECT pg_backend_pid()")
            ((pid,),) = cursor.fetchall()
        return bool(pid == self.get_backend_pid())

    def ask(self) -> None:
        """One round trip; raises psycopg2.Error when the server does not answer it."""
        with self.cursor() as cursor:
            cursor.execute("SELECT 1")

    @property
    def taken_where(self) -> str:
        """File, line and function of the holder."""
        code = self.taken_code
        if code is None:
            return "unknown"
        positions = list(code.co_positions())
        line = positions[self.taken_offset // 2][0] or code.co_firstlineno
        return f"{code.co_filename}:{line} in {code.co_name}"


def open_connection(dsn: str) -> Connection:
    """Connect within CONNECT_TIMEOUT_S; raises psycopg2.OperationalError."""
    connection: Any = psycopg2.connect(dsn, connection_factory=Connection)
    try:
        settle(connection)
        register_type(_UUID, connection)
        register_type(_UUIDS, connection)
    except BaseException:
        connection.close()
        raise
    return connection  # type: ignore[no-any-return]


def settle(connection: PsycopgConnection) -> None:
    """Set the values that differ from SESSION; usual defaults need no round trip.

    UUIDs may be values of statements from now on.
    """
    register_adapter(UUID, _quoted)
    wrong = {
        name: value
        for name, value in SESSION.items()
        if connection.get_parameter_status(name) != value
    }
    if not wrong:
        return
    connection.autocommit = True
    with connection.cursor() as cursor:
        for name, value in wrong.items():
            cursor.execute(f"SET {name} TO '{value}'")  # Our own constants only.


def complete_dsn(dsn: str) -> str:
    """The DSN with bounded connects and keepalives, unless the DSN sets its own.

    The text of callers is Unicode, so the client's encoding is UTF8 whatever the DSN, the server or
    PGCLIENTENCODING say. A complete DSN does not use libpq's environment.
    """
    leave_environment(dsn)
    defaults: dict[str, str] = {
        "connect_timeout": str(CONNECT_TIMEOUT_S),
        "application_name": "holdfast",
        **KEEPALIVE,
    }
    return str(make_dsn(**{**defaults, **parse_dsn(dsn), "client_encoding": "UTF8"}))
