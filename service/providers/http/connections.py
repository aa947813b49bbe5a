"""Connections that record which exchange they serve, its progress and its deadline."""

from __future__ import annotations

import http.client
import socket
import threading
from enum import Enum, auto
from time import monotonic
from typing import Any

import urllib3.connection
import urllib3.connectionpool
from urllib3.exceptions import ConnectTimeoutError, NameResolutionError, NewConnectionError
from urllib3.util.connection import create_connection

from service.providers.http.resolver import Resolver
from service.resilience.deadline import Deadline
from service.resilience.watchdog import Watch, Watchdog

# Shorter than the shortest keep-alive in common use (5 s): a connection that the provider closes
# while we reuse it turns a charge into doubt; a new handshake only costs a round trip.
IDLE_LIMIT_S = 4.0

# The socket's own timeout ends a silent peer exactly at the deadline, with the library's error text;
# the watchdog, this much later, ends exchanges that the timeout cannot (drips, the handshake).
WATCHDOG_GRACE_S = 0.005

# Interim answers may precede the final one (RFC 9110, section 15.2): sane peers send a few.
INTERIM_ANSWERS_MAX = 16

# A timeout of 0 would mean "do not block" to a socket.
SHORTEST_TIMEOUT_S = 0.001


class Phase(Enum):
    """The connection's phase. Before SENDING no byte of the request has been written."""

    CONNECTING = auto()
    TUNNELLING = auto()
    HANDSHAKING = auto()
    SENDING = auto()


class Exchange:
    """One request and its answer: the deadline for both, and their progress."""

    def __init__(
        self,
        deadline: Deadline,
        *,
        connect_timeout_s: float,
        watchdog: Watchdog,
        resolver: Resolver,
    ) -> None:
        self.deadline = deadline
        self.connect_timeout_s = connect_timeout_s
        self.resolver = resolver
        self.phase = Phase.CONNECTING
        self.tunnel_refused = False
        self._watchdog = watchdog
        self._watch: Watch | None = None

    @property
    def cut_short(self) -> bool:
        """Whether the watchdog ended the exchange."""
        return self._watch is not None and self._watch.fired

    @property
    def timeout_s(self) -> float:
        """The remaining time, as a socket's timeout."""
        return max(SHORTEST_TIMEOUT_S, self.deadline.remaining_s())

    def watch(self, sock: socket.socket) -> None:
        """Let the watchdog shut the socket down shortly after the deadline."""
        late = Deadline(self.deadline.at_s + WATCHDOG_GRACE_S)
        self._watch = self._watchdog.watch(sock.fileno(), late)

    def release(self) -> None:
        """End the exchange: its connection may serve another. May be called twice."""
        if self._watch is not None:
            self._watch.release()


class FinalResponse(http.client.HTTPResponse):
    """The final answer: interim answers before it (100, 102, 103, any 1xx) are read and skipped.

    http.client itself skips only 100, and takes a 103 for the final answer.
    """

    def _read_status(self) -> tuple[str, int, str]:
        for _ in range(INTERIM_ANSWERS_MAX + 1):
            version, status, reason = super()._read_status()  # type: ignore[misc]
            if status >= http.client.OK:
                return version, status, reason
            if status == http.client.SWITCHING_PROTOCOLS:
                raise http.client.HTTPException(
                    "The peer switched protocols, which no request asked"
                )
            http.client.parse_headers(self.fp)
        raise http.client.HTTPException(f"Over {INTERIM_ANSWERS_MAX} answers of 1xx came first")


class _Connection(urllib3.connection.HTTPConnection):
    """Serves `exchange`; the pool sets it at each checkout."""

    response_class = FinalResponse
    exchange: Exchange
    idle_since_s = 0.0
    _held: list[bytes] | None = None

    def _new_conn(self) -> socket.socket:
        """Connect within the connect budget; the addresses of a name share it."""
        budget = self.exchange.deadline.within(self.exchange.connect_timeout_s)
        try:
            addresses = self.exchange.resolver.addresses(self._dns_host, budget)
        except socket.gaierror as error:
            raise NameResolutionError(self.host, self, error) from error
        failure: OSError = OSError("The name has no addresses")
        for tried, address in enumerate(addresses):
            timeout_s = budget.remaining_s() / (len(addresses) - tried)
            try:
                return self._connect_to(address, max(SHORTEST_TIMEOUT_S, timeout_s))
            except OSError as error:
                failure = error
        if isinstance(failure, TimeoutError):
            shown_s = self.exchange.connect_timeout_s
            raise ConnectTimeoutError(
                self, f"Connection to {self.host} timed out. (connect timeout={shown_s:g})"
            ) from failure
        raise NewConnectionError(
            self, f"Failed to establish a new connection: {failure}"
        ) from failure

    def _connect_to(self, address: str, timeout_s: float) -> socket.socket:
        sock = create_connection(
            (address, self.port), timeout_s, socket_options=self.socket_options
        )
        try:
            # Before the handshake, because that is the first step that a peer can stall.
            self.exchange.watch(sock)
            sock.settimeout(self.exchange.timeout_s)
        except OSError:
            sock.close()
            raise
        self.exchange.phase = Phase.HANDSHAKING
        return sock

    def _tunnel(self) -> None:
        self.exchange.phase = Phase.TUNNELLING
        try:
            super()._tunnel()
        except OSError as error:
            # The proxy's own whole answer refuses the tunnel: no byte reached the provider.
            self.exchange.tunnel_refused = str(error).startswith("Tunnel connection failed")
            raise
        self.exchange.phase = Phase.HANDSHAKING

    def connect(self) -> None:
        super().connect()
        self.exchange.phase = Phase.SENDING

    def request(self, *args: Any, **kwargs: Any) -> None:
        """Send head and body in one write: a second one costs a tenth of the whole exchange."""
        self.timeout = self.exchange.timeout_s
        pieces: list[bytes] = []
        self._held = pieces
        try:
            super().request(*args, **kwargs)
        finally:
            self._held = None
        self.send(b"".join(pieces))

    def send(self, data: Any) -> None:
        if self._held is None:
            super().send(data)
        else:
            self._held.append(data)

    def getresponse(self) -> urllib3.HTTPResponse:  # type: ignore[override]
        # Set here, not by urllib3: its timeout was computed before the connect and is too long now.
        self.timeout = self.exchange.timeout_s
        return super().getresponse()

    @property
    def has_connected_to_proxy(self) -> bool:
        """Whether a failure now is the provider's: urllib3 forgets this when the peer hangs up."""
        return self.exchange.phase is Phase.SENDING or super().has_connected_to_proxy


class HTTPConnection(_Connection):
    """A plain connection, for tests against stand-ins without TLS."""


class HTTPSConnection(_Connection, urllib3.connection.HTTPSConnection):
    """A TLS connection, direct or through a CONNECT tunnel."""


class _Pool(urllib3.connectionpool.HTTPConnectionPool):
    """Checks connections out to the exchange that the calling thread began."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._begun = threading.local()

    def begin(self, exchange: Exchange) -> None:
        """Assign this thread's next request to `exchange`."""
        self._begun.exchange = exchange

    def _get_conn(self, timeout: float | None = None) -> Any:
        connection: Any = super()._get_conn(timeout)
        exchange: Exchange = self._begun.exchange
        connection.exchange = exchange
        if monotonic() - connection.idle_since_s > IDLE_LIMIT_S:
            connection.close()
        if connection.sock is not None:
            exchange.phase = Phase.SENDING
            exchange.watch(connection.sock)
        return connection

    def _put_conn(self, conn: Any) -> None:
        if conn is not None:
            # Release first: from here on another thread may be using the socket.
            conn.exchange.release()
            if conn.exchange.cut_short:
                conn.close()
            conn.idle_since_s = monotonic()
        super()._put_conn(conn)


class HTTPConnectionPool(_Pool):
    ConnectionCls = HTTPConnection


class HTTPSConnectionPool(_Pool, urllib3.connectionpool.HTTPSConnectionPool):
    # urllib3 puts the class name into its errors, and people search their logs for this name.
    ConnectionCls = HTTPSConnection


def pool_for(
    base_url: str,
    *,
    max_connections: int,
    ssl_context: Any,
    proxy_url: str | None,
    proxy_headers: dict[str, str],
) -> HTTPConnectionPool | HTTPSConnectionPool:
    """The connection pool for the provider's host; with a proxy, through its CONNECT."""
    # Not blocking: a wait for a pooled connection has no deadline. The bulkhead bounds the callers.
    options: dict[str, Any] = {
        "maxsize": max_connections,
        "block": False,
        "ssl_context": ssl_context,
    }
    manager: urllib3.PoolManager
    if proxy_url is None:
        manager = urllib3.PoolManager(num_pools=1, **options)
    else:
        manager = urllib3.ProxyManager(
            proxy_url, num_pools=1, proxy_headers=proxy_headers, **options
        )
    manager.pool_classes_by_scheme = {"http": HTTPConnectionPool, "https": HTTPSConnectionPool}
    pool: Any = manager.connection_from_url(base_url)
    return pool  # type: ignore[no-any-return]
