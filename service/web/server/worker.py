"""The gunicorn worker: threads serve only whole requests, and overload is refused at once.

gunicorn's own threaded worker gives each connection a thread on arrival, from an unbounded queue.
Slow clients then hold the threads, and when the threads are stuck even /healthz waits in the queue.
Here the main loop, which never blocks, receives requests into memory and passes each complete one
to a thread; /healthz and /readyz have a separate thread pool; the queue before the threads is as
long as can be served in time, and requests beyond it get their 503 from the main loop.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import selectors
import socket
import threading
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any, ClassVar

from gunicorn.workers import gthread

from service.observability.metrics import catalogue as metrics
from service.web.http.request_scope import ARRIVED_S
from service.web.server import framing, lifecycle, refusals
from service.web.server.connection import ClientConnection
from service.web.server.framing import Verdict
from service.web.server.request_queue import RequestQueue

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

log = logging.getLogger(__name__)

# From the first byte to the last; enough for 64 KiB over a bad connection.
RECEIVE_S = 10.0
# After our last byte the client has this long to read it and close.
LINGER_S = 1.0
# Threads for balancers' probes, one of which may be querying the database.
PROBE_THREADS = 2
# The pause after which a full worker accepts, so that a free sibling can take the connection.
YIELD_S = 0.001
# The resolution of the queue's and the connections' deadlines.
TICK_S = 0.05
_RECEIVE_BYTES = 64 * 1024
# Events may be large: so many are received at once, which limits their memory to 16 MiB.
LARGE_AT_ONCE = 16


class PaymentWorker(gthread.ThreadWorker):  # type: ignore[misc]
    """`configured` sets its limits. All methods run in the main loop unless noted."""

    wsgi: Any
    queue_wait_s: ClassVar[float] = 1.0
    drain_s: ClassVar[float] = 0.5

    @classmethod
    def configured(cls, *, queue_wait_s: float, drain_s: float) -> type[PaymentWorker]:
        """The class with its limits: the longest wait of a write for a thread (a read may wait
        twice as long), and how long a stopping worker still accepts, saying so on /readyz."""
        return type(cls.__name__, (cls,), {"queue_wait_s": queue_wait_s, "drain_s": drain_s})

    @classmethod
    def check_config(cls, cfg: Any, log: Any) -> None:
        if cfg.is_ssl:
            raise RuntimeError("TLS ends at the balancer in front; this worker reads plain HTTP.")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Registered with the poller: arriving, kept alive between requests, or closing.
        self._watched: dict[ClientConnection, None] = {}
        self._queue = RequestQueue(self.cfg.threads, self.queue_wait_s)
        self._serving = threading.local()
        self._next_tick_s = 0.0
        self._stop_at_s: float | None = None

    # --- Start and stop

    def init_process(self) -> None:
        self._probes = ThreadPoolExecutor(PROBE_THREADS, thread_name_prefix="probe")
        super().init_process()

    def load_wsgi(self) -> None:
        super().load_wsgi()
        application: Any = self.wsgi

        def stamped(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
            environ[ARRIVED_S] = self._serving.arrived_s
            answer: Iterable[bytes] = application(environ, start_response)
            return answer

        self.wsgi = stamped

    def run(self) -> None:
        try:
            super().run()
        finally:
            self._probes.shutdown(wait=False)

    def handle_exit(self, sig: int, frame: Any) -> None:
        """SIGTERM. A replaced worker ends at once; a stopping instance first reports it on /readyz."""
        if lifecycle.is_stopping() and self.alive and self._stop_at_s is None:
            self._stop_at_s = monotonic() + self.drain_s
            self.method_queue.defer(lambda: None)
        else:
            super().handle_exit(sig, frame)

    # --- Receiving

    def accept(self, listener: Any) -> None:
        if self._queue.is_busy and self.cfg.workers > 1:
            sleep(YIELD_S)
        try:
            client, address = listener.accept()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                self._make_room()
            elif error.errno not in (errno.EAGAIN, errno.ECONNABORTED):
                raise
            return
        if self.nr_conns >= self.worker_connections - 1:
            self._make_room()
        self.nr_conns += 1
        connection = ClientConnection(self.cfg, client, address, listener.getsockname())
        connection.expires_s = monotonic() + RECEIVE_S
        # The request has usually arrived with the connection.
        self._receive(connection)

    def _make_room(self) -> None:
        """Evict the idlest connection."""
        oldest = min(self._watched, key=lambda connection: connection.expires_s, default=None)
        if oldest is not None:
            self._drop(oldest)

    def _receive(self, connection: ClientConnection, _socket: Any = None) -> None:
        try:
            chunk = connection.sock.recv(_RECEIVE_BYTES)
        except BlockingIOError:
            return self._watch(connection)
        except OSError:
            return self._drop(connection)
        if not chunk:
            return self._drop(connection)
        if connection.is_closing:
            return None
        if not connection.arrival.has_begun:
            self._begin(connection)
        return self._judge(connection, connection.arrival.feed(chunk))

    def _begin(self, connection: ClientConnection) -> None:
        connection.arrived_s = monotonic()
        connection.expires_s = connection.arrived_s + RECEIVE_S

    def _judge(self, connection: ClientConnection, verdict: Verdict) -> None:
        if verdict is Verdict.WHOLE:
            connection.request = connection.arrival.take()
            self._unwatch(connection)
            self._admit(connection)
            return
        if verdict is Verdict.REFUSE and connection.arrival.refusal is not None:
            refusal = connection.arrival.refusal
            log.warning("http.unreadable", extra={"code": refusal.code, "detail": refusal.detail})
            self._refuse(connection, refusal.code, refusal.detail)
            return
        if verdict is Verdict.CONTINUE:
            self._send(connection, b"HTTP/1.1 100 Continue\r\n\r\n")
        self._watch(connection)
        if connection.arrival.is_large and self._holds_too_many_large():
            self._shed(connection, "queue_full", "More large requests arrive than can be held.")

    def _holds_too_many_large(self) -> bool:
        large = sum(each.arrival.is_large and not each.is_closing for each in self._watched)
        return large > LARGE_AT_ONCE

    # --- The queue before the threads

    def _admit(self, connection: ClientConnection) -> None:
        if framing.is_probe(connection.request):
            self._submit(self._probes, connection)
            return
        if self._queue.is_full:
            displaced = self._queue.displace_write(connection)
            refused = displaced or connection
            self._shed(refused, "queue_full", "More requests wait than can be served.")
            if displaced is None:
                return
        has_to_wait = self._queue.admit(connection)
        future = self._submit(self.tpool, connection)
        if has_to_wait:
            self._queue.wait(future, connection)

    def _submit(self, lane: ThreadPoolExecutor, connection: ClientConnection) -> Future[Any]:
        future = lane.submit(self.handle, connection)
        future.add_done_callback(
            lambda done: self.method_queue.defer(self.finish_request, connection, done)
        )
        return future

    def _shed(self, connection: ClientConnection, reason: str, detail: str) -> None:
        metrics.requests_shed_total.labels(reason).inc()
        self._refuse(connection, "deadline_exceeded", detail)

    def _refuse(self, connection: ClientConnection, code: str, detail: str) -> None:
        """Answer from the main loop and close; the client gets time to read the answer."""
        answer = refusals.refusal(
            code,
            detail,
            method=framing.method_of(connection.request) or connection.arrival.method,
            took_s=monotonic() - connection.arrived_s,
        )
        self._send(connection, answer)
        self._linger(connection)

    # --- In the threads

    def handle(self, connection: ClientConnection) -> Any:
        """Serve one request. Runs in a thread."""
        began_s = monotonic()
        metrics.worker_threads_busy.inc()
        try:
            return super().handle(connection)
        finally:
            metrics.worker_threads_busy.dec()
            self._queue.measure(connection, monotonic() - began_s)

    def handle_request(self, request: Any, connection: ClientConnection) -> Any:
        """Runs in a thread."""
        if lifecycle.is_stopping():
            # From now on every answer closes its connection.
            self.max_keepalived = 0
        self._serving.arrived_s = connection.arrived_s
        try:
            return super().handle_request(request, connection)
        except BlockingIOError:
            # The write timeout of the client; the base class takes it for a server error.
            took_s = round(monotonic() - connection.arrived_s, 1)
            log.warning("http.answer_unread", extra={"took_s": took_s})
            return False

    def handle_error(
        self, request: Any, client: socket.socket, address: Any, error: Exception
    ) -> None:
        """Answer requests that the parser refused, and our own bugs. Runs in a thread.

        The base class would log and return the client's input.
        """
        code = refusals.code_of(error)
        if code == "internal_error":
            log.error("request.failed", exc_info=error)
            detail = "An internal error occurred; the same idempotency key is safe."
        else:
            log.warning("http.unreadable", extra={"code": code, "error": type(error).__name__})
            detail = "The request is not valid HTTP."
        with contextlib.suppress(OSError):
            client.sendall(refusals.refusal(code, detail))

    # --- After a request

    def finish_request(self, connection: ClientConnection, future: Future[Any]) -> None:
        self._queue.end(connection)
        if future.cancelled():
            # It was refused while it was queued; _refuse owns the connection now.
            return
        try:
            can_reuse = future.result()
        except BaseException:  # noqa: BLE001  # A thread's SystemExit too must not end the loop.
            self._drop(connection)
            return
        connection.sock.setblocking(False)
        # The parser got one request; bytes that it left would become part of the next one.
        if not can_reuse or connection.parser.unreader.take_buffered():
            self._linger(connection)
            return
        connection.expires_s = monotonic() + self.cfg.keepalive
        # The bytes behind this request are the beginning of the next.
        if connection.arrival.has_begun:
            self._begin(connection)
            self._judge(connection, connection.arrival.judge())
        else:
            self._watch(connection)

    def _linger(self, connection: ClientConnection) -> None:
        """Close our side, and the connection when the client has closed its side.

        A plain close with unread bytes would reset the connection, and the client might never see
        our answer.
        """
        connection.is_closing = True
        connection.expires_s = monotonic() + LINGER_S
        try:
            connection.sock.shutdown(socket.SHUT_WR)
        except OSError:
            self._drop(connection)
        else:
            self._watch(connection)

    def _send(self, connection: ClientConnection, answer: bytes) -> None:
        # A few hundred bytes fit any send buffer; a client that reads nothing gets nothing.
        with contextlib.suppress(OSError):
            connection.sock.send(answer)

    def _watch(self, connection: ClientConnection) -> None:
        if connection not in self._watched:
            self._watched[connection] = None
            self.poller.register(
                connection.sock, selectors.EVENT_READ, partial(self._receive, connection)
            )

    def _unwatch(self, connection: ClientConnection) -> None:
        if connection in self._watched:
            del self._watched[connection]
            self.poller.unregister(connection.sock)

    def _drop(self, connection: ClientConnection) -> None:
        if connection.sock.fileno() < 0:
            # Evicted to make room, while its own event was in the same batch.
            return
        self._unwatch(connection)
        self.nr_conns -= 1
        connection.close()

    # --- Deadlines

    def wait_for_and_dispatch_events(self, timeout: float) -> None:
        super().wait_for_and_dispatch_events(min(timeout, self._wait_s()))
        now_s = monotonic()
        if now_s < self._next_tick_s:
            return
        self._next_tick_s = now_s + TICK_S
        for connection in self._queue.cancel_late(now_s) if self._queue.has_waiting else ():
            self._shed(connection, "deadline_exceeded", "No thread came free in time.")
        for connection in [each for each in self._watched if each.expires_s <= now_s]:
            self._expire(connection)
        if self._stop_at_s is not None and now_s >= self._stop_at_s:
            self.alive = False

    def _wait_s(self) -> float:
        return (
            TICK_S
            if self._queue.has_waiting or self._stop_at_s is not None or not self.alive
            else 0.5
        )

    def _expire(self, connection: ClientConnection) -> None:
        if connection.is_closing or not connection.arrival.has_begun:
            self._drop(connection)
        else:
            self._refuse(connection, "request_timeout", "The request did not arrive in time.")

    def murder_keepalived(self, force: bool = False) -> None:
        """Deadlines end idle connections (see `_expire`); `force` drops all of them."""
        if force:
            for connection in list(self._watched):
                self._drop(connection)

    def murder_pending(self) -> None:
        """Not used: deadlines end these connections too."""

    def _cap_keepalive(self, deadline: float) -> None:
        """Stopping: kept connections may still send a request, which is served.

        When only this worker stops, and not the instance, they keep their whole time.
        """
        if lifecycle.is_stopping():
            for connection in self._watched:
                if not connection.arrival.has_begun:
                    connection.expires_s = min(connection.expires_s, deadline)
