"""One database connection: how it is opened, whether it still lives, what its holder did with it."""

from __future__ import annotations

import random
import select
from time import monotonic
from types import CodeType
from typing import Any

import psycopg2
from psycopg2.extensions import connection as PsycopgConnection
from psycopg2.extensions import make_dsn, parse_dsn

from service.database.environment import leave_environment

# Whole seconds are all that libpq knows; it covers the handshake too, so one stalled attempt ends
# well before the two seconds in which the service promises to be back.
CONNECT_TIMEOUT_S = 1
# A dead peer is noticed after 10 + 3 x 3 s of silence, unacknowledged bytes after 5 s; both are
# only the net below the deadlines. libpq ignores all of them on a unix socket.
KEEPALIVE = {
    "keepalives": "1",
    "keepalives_idle": "10",
    "keepalives_interval": "3",
    "keepalives_count": "3",
    "tcp_user_timeout": "5000",
}
# A connection that came back this recently is lent without a look: asking the kernel costs as
# much as all the rest of a checkout.
FRESH_S = 0.01
# Longer than this without a word, and the server is asked: firewalls and partitions are silent.
IDLE_CHECK_S = 0.5


# What our statements and psycopg2's quoting rely on, whatever the database's or the role's defaults
# are. These, like the encoding, are reported by the server, so a pooler in transaction mode keeps them for us; the
# rest is set on the role (role_settings.py).
SESSION = {
    "DateStyle": "ISO, MDY",
    "TimeZone": "UTC",
    "standard_conforming_strings": "on",
}


class Connection(PsycopgConnection):
    """A psycopg2 connection in autocommit mode. Its fields belong to whoever holds it: no lock."""

    # Which of the pool's generations opened it: an older one is dropped, not lent.
    generation: int
    # Replaced after this, so that server memory and a changed DNS name do not last for ever.
    expires_at_s: float
    # Until then it may be lent without a look; never later than it expires.
    fresh_until_s: float
    idle_since_s: float
    # What EXECUTE to send for a statement that was prepared on this connection.
    prepared: dict[str, str]
    # Where and when it was taken: a code object and an offset keep no frame (and no locals) alive.
    taken_at_s: float
    taken_code: CodeType | None
    taken_offset: int
    is_leak_unreported: bool
    # Its last statement lost it, whatever libpq thinks of it.
    is_broken: bool
    # Seconds its present holder stood in line.
    wait_s: float

    def adopt(self, generation: int, lifetime_s: float) -> None:
        """Begin life in a pool, with up to a tenth less of it so that not all end at once."""
        self.autocommit = True
        now = monotonic()
        self.generation = generation
        self.expires_at_s = now + lifetime_s * (1 - 0.1 * random.random())  # noqa: S311
        self.idle_since_s = now
        self.fresh_until_s = min(now + FRESH_S, self.expires_at_s)
        self.prepared = {}
        self.taken_at_s = 0.0
        self.taken_code = None
        self.taken_offset = 0
        self.is_leak_unreported = True
        self.is_broken = False
        self.wait_s = 0.0

    @property
    def has_hung_up(self) -> bool:
        """True when something is there to be read: an idle server says only its farewell."""
        if self.closed:
            return True
        poll = select.poll()
        poll.register(self.fileno(), select.POLLIN | select.POLLPRI)
        return bool(poll.poll(0))

    def ask(self) -> None:
        """One round trip; raises psycopg2.Error when the server does not answer it."""
        with self.cursor() as cursor:
            cursor.execute("SELECT 1")

    @property
    def taken_where(self) -> str:
        """File, line and function of whoever holds it."""
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
    except BaseException:
        connection.close()
        raise
    return connection  # type: ignore[no-any-return]


def settle(connection: PsycopgConnection) -> None:
    """Set what differs from SESSION: nothing, and no round trip, where the defaults are as usual."""
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
    """The DSN with bounded connects and keepalives, unless it says otherwise itself.

    The text of callers is Unicode, so the client's encoding is UTF8 whatever the DSN, the server or
    PGCLIENTENCODING say. libpq's environment is left where the DSN is complete.
    """
    leave_environment(dsn)
    defaults: dict[str, str] = {
        "connect_timeout": str(CONNECT_TIMEOUT_S),
        "application_name": "holdfast",
        **KEEPALIVE,
    }
    return str(make_dsn(**{**defaults, **parse_dsn(dsn), "client_encoding": "UTF8"}))
