"""The gunicorn worker: threads serve only whole requests, and the surplus is refused at once.

gunicorn's own threaded worker gives a thread to every connection as it comes, from a line without
end. Slow clients then hold the threads, and when the threads are stuck even /healthz waits in line.
Here the main loop, which never blocks, receives requests into memory and hands a request on when it
has all of it; /healthz and /readyz have a lane of their own; the line before the threads is as long
as can be served in time, and what is beyond it gets its 503 from the main loop.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import selectors
import socket
import threading
from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any, ClassVar

from gunicorn.workers import gthread

from service.observability import metrics
from service.web import incoming, lifecycle, refusals
from service.web.incoming import Arrival, Verdict
from service.web.request_scope import ARRIVED_S

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

log = logging.getLogger(__name__)

# From its first byte to its last; a request of 64 KiB over a bad line still makes it.
RECEIVE_S = 10.0
# After our last word the client is given this long to read it and close.
LINGER_S = 1.0
# Balancers' probes, one of which may be asking the database.
PROBE_THREADS = 2
# The line may be this many requests a thread, however quick they seem to be.
LONGEST_LINE_A_THREAD = 8
# A full worker lets a sibling with a free thread take the connection.
YIELD_S = 0.001
# How soon the line's and the connections' ends are noticed.
TICK_S = 0.05
_RECEIVE_BYTES = 64 * 1024
# Events may be large: so many of them are received at once, and 16 MiB is all that they take.
LARGE_AT_ONCE = 16


class Connection(gthread.TConn):  # type: ignore[misc]
    """A client's connection, with what has arrived of its next request."""

    def __init__(self, *of: Any) -> None:
        super().__init__(*of)
        self.arrival = Arrival()
        # The whole request that is given to a thread next, until the parser there has it.
        self.request = b""
        self.arrived_s = 0.0
        self.expires_s = 0.0
        self.is_closing = False
        self.in_line = False
        # The base class would wait for the first byte in a thread.
        self.data_ready = True

    def init(self) -> None:
        """In the thread: give the parser what the main loop has received."""
        super().init()
        if self.request:
            self.parser.unreader.unread(self.request)
            self.request = b""


class PaymentWorker(gthread.ThreadWorker):  # type: ignore[misc]
    """`configured` gives it its limits. All methods run in the main loop but those that say so."""

    wsgi: Any
    line_wait_s: ClassVar[float] = 1.0
    drain_s: ClassVar[float] = 0.5

    @classmethod
    def configured(cls, *, line_wait_s: float, drain_s: float) -> type[PaymentWorker]:
        """The class with its limits: the longest wait of a write for a thread (a read may wait
        twice as long), and how long a stopping worker still accepts, saying so on /readyz."""
        return type(cls.__name__, (cls,), {"line_wait_s": line_wait_s, "drain_s": drain_s})

    @classmethod
    def check_config(cls, cfg: Any, log: Any) -> None:
        if cfg.is_ssl:
            raise RuntimeError("TLS ends at the balancer in front; this worker reads plain HTTP.")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Registered with the poller: arriving, kept alive between requests, or closing.
        self._watched: dict[Connection, None] = {}
        # Requests given to the threads and not finished; beyond the threads they stand in line.
        self._admitted = 0
        self._line: deque[tuple[Future[Any], Connection]] = deque()
        # A running mean of the time a request takes a thread; starts pessimistic.
        self._service_s = 0.1
        self._serving = threading.local()
        self._next_tick_s = 0.0
        self._stop_at_s: float | None = None

    # --- Coming up and going down

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
        """SIGTERM. A replaced worker ends at once; a stopping instance first lets itself be seen."""
        if lifecycle.is_stopping() and self.alive and self._stop_at_s is None:
            self._stop_at_s = monotonic() + self.drain_s
            self.method_queue.defer(lambda: None)
        else:
            super().handle_exit(sig, frame)

    # --- Receiving

    def accept(self, listener: Any) -> None:
        if self._admitted >= self.cfg.threads and self.cfg.workers > 1:
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
        connection = Connection(self.cfg, client, address, listener.getsockname())
        connection.expires_s = monotonic() + RECEIVE_S
        # The request has mostly come along with the connection.
        self._receive(connection)

    def _make_room(self) -> None:
        """Drop the connection that has gone longest without a whole request."""
        oldest = min(self._watched, key=lambda connection: connection.expires_s, default=None)
        if oldest is not None:
            self._drop(oldest)

    def _receive(self, connection: Connection, _socket: Any = None) -> None:
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

    def _begin(self, connection: Connection) -> None:
        connection.arrived_s = monotonic()
        connection.expires_s = connection.arrived_s + RECEIVE_S

    def _judge(self, connection: Connection, verdict: Verdict) -> None:
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

    # --- The line before the threads

    def _admit(self, connection: Connection) -> None:
        if incoming.is_probe(connection.request):
            self._submit(self._probes, connection)
            return
        waiting = self._admitted - self.cfg.threads
        if waiting >= self._longest_line() and not self._displaces_a_write(connection):
            self._shed(connection, "queue_full", "More requests wait than can be served.")
            return
        self._admitted += 1
        connection.in_line = True
        future = self._submit(self.tpool, connection)
        if waiting >= 0:
            self._line.append((future, connection))

    def _submit(self, lane: ThreadPoolExecutor, connection: Connection) -> Future[Any]:
        future = lane.submit(self.handle, connection)
        future.add_done_callback(
            lambda done: self.method_queue.defer(self.finish_request, connection, done)
        )
        return future

    def _longest_line(self) -> float:
        """As many as the threads can begin within `line_wait_s`, as things go.

        One a thread always may: a few slow requests do not make all the others slow.
        """
        threads: int = self.cfg.threads
        in_time = threads * self.line_wait_s / max(self._service_s, 0.001)
        return min(max(in_time, threads), threads * LONGEST_LINE_A_THREAD)

    def _displaces_a_write(self, connection: Connection) -> bool:
        """Reads are never refused before writes: the newest write in line makes room for one."""
        if not incoming.is_read(connection.request):
            return False
        for future, waiting in reversed(self._line):
            # One that made room already stays in line until the next tick, and gives no second place.
            is_there = not future.cancelled() and not incoming.is_read(waiting.request)
            if is_there and future.cancel():
                self._shed(waiting, "queue_full", "More requests wait than can be served.")
                return True
        return False

    def _shorten_line(self, now_s: float) -> None:
        """Refuse those whose time went by in the line, while the answer still comes early."""
        line, self._line = self._line, deque()
        for future, connection in line:
            if future.running() or future.done():
                continue
            patience = 2 if incoming.is_read(connection.request) else 1
            if now_s - connection.arrived_s < patience * self.line_wait_s or not future.cancel():
                self._line.append((future, connection))
            else:
                self._shed(connection, "deadline_exceeded", "No thread came free in time.")

    def _shed(self, connection: Connection, reason: str, detail: str) -> None:
        metrics.requests_shed_total.labels(reason).inc()
        self._refuse(connection, "deadline_exceeded", detail)

    def _refuse(self, connection: Connection, code: str, detail: str) -> None:
        """Answer from here and close; the client is left the time to read it."""
        answer = refusals.refusal(
            code,
            detail,
            method=incoming.method_of(connection.request) or connection.arrival.method,
            took_s=monotonic() - connection.arrived_s,
        )
        self._send(connection, answer)
        self._linger(connection)

    # --- In the threads

    def handle(self, connection: Connection) -> Any:
        """Serve one request. Runs in a thread."""
        began_s = monotonic()
        metrics.worker_threads_busy.inc()
        try:
            return super().handle(connection)
        finally:
            metrics.worker_threads_busy.dec()
            if connection.in_line:
                # A lost update between two threads costs one sample.
                self._service_s += 0.1 * (monotonic() - began_s - self._service_s)

    def handle_request(self, request: Any, connection: Connection) -> Any:
        """Runs in a thread."""
        if lifecycle.is_stopping():
            # From now on no answer offers to keep its connection.
            self.max_keepalived = 0
        self._serving.arrived_s = connection.arrived_s
        try:
            return super().handle_request(request, connection)
        except BlockingIOError:
            # The bound on writes to it; the base class takes it for an error of ours.
            took_s = round(monotonic() - connection.arrived_s, 1)
            log.warning("http.answer_unread", extra={"took_s": took_s})
            return False

    def handle_error(
        self, request: Any, client: socket.socket, address: Any, error: Exception
    ) -> None:
        """Answer what the parser refused, and our own bugs. Runs in a thread.

        The base class would log and send back what the client sent.
        """
        code = refusals.code_of(error)
        if code == "internal_error":
            log.error("request.failed", exc_info=error)
            detail = "Something went wrong on our side; the same idempotency key is safe."
        else:
            log.warning("http.unreadable", extra={"code": code, "error": type(error).__name__})
            detail = "The request is not HTTP as we read it."
        with contextlib.suppress(OSError):
            client.sendall(refusals.refusal(code, detail))

    # --- After a request

    def finish_request(self, connection: Connection, future: Future[Any]) -> None:
        if connection.in_line:
            connection.in_line = False
            self._admitted -= 1
        if future.cancelled():
            # It was refused while it stood in line; _refuse took the connection over.
            return
        try:
            can_reuse = future.result()
        except BaseException:  # noqa: BLE001  # A thread's SystemExit too must not end the loop.
            self._drop(connection)
            return
        connection.sock.setblocking(False)
        # The parser got one request; bytes that it left would be read as part of the next one.
        if not can_reuse or connection.parser.unreader.take_buffered():
            self._linger(connection)
            return
        connection.expires_s = monotonic() + self.cfg.keepalive
        # What came behind this request is the beginning of the next.
        if connection.arrival.has_begun:
            self._begin(connection)
            self._judge(connection, connection.arrival.judge())
        else:
            self._watch(connection)

    def _linger(self, connection: Connection) -> None:
        """Close our side, and the whole when the client has closed its own.

        A plain close while something is unread would reset the connection, and the client might
        never see our answer.
        """
        connection.is_closing = True
        connection.expires_s = monotonic() + LINGER_S
        try:
            connection.sock.shutdown(socket.SHUT_WR)
        except OSError:
            self._drop(connection)
        else:
            self._watch(connection)

    def _send(self, connection: Connection, answer: bytes) -> None:
        # A few hundred bytes fit any send buffer; a client that reads nothing gets nothing.
        with contextlib.suppress(OSError):
            connection.sock.send(answer)

    def _watch(self, connection: Connection) -> None:
        if connection not in self._watched:
            self._watched[connection] = None
            self.poller.register(
                connection.sock, selectors.EVENT_READ, partial(self._receive, connection)
            )

    def _unwatch(self, connection: Connection) -> None:
        if connection in self._watched:
            del self._watched[connection]
            self.poller.unregister(connection.sock)

    def _drop(self, connection: Connection) -> None:
        if connection.sock.fileno() < 0:
            # Dropped to make room, while its own event was in the same batch.
            return
        self._unwatch(connection)
        self.nr_conns -= 1
        connection.close()

    # --- The clock

    def wait_for_and_dispatch_events(self, timeout: float) -> None:
        super().wait_for_and_dispatch_events(min(timeout, self._wait_s()))
        now_s = monotonic()
        if now_s < self._next_tick_s:
            return
        self._next_tick_s = now_s + TICK_S
        if self._line:
            self._shorten_line(now_s)
        for connection in [each for each in self._watched if each.expires_s <= now_s]:
            self._expire(connection)
        if self._stop_at_s is not None and now_s >= self._stop_at_s:
            self.alive = False

    def _wait_s(self) -> float:
        return TICK_S if self._line or self._stop_at_s is not None or not self.alive else 0.5

    def _expire(self, connection: Connection) -> None:
        if connection.is_closing or not connection.arrival.has_begun:
            self._drop(connection)
        else:
            self._refuse(connection, "request_timeout", "The request did not arrive in time.")

    def murder_keepalived(self, force: bool = False) -> None:
        """The clock ends connections here; `force` ends them all."""
        if force:
            for connection in list(self._watched):
                self._drop(connection)

    def murder_pending(self) -> None:
        """The clock ends connections here."""

    def _cap_keepalive(self, deadline: float) -> None:
        """Going down: kept connections may still bring a request, which is served.

        When only this worker goes, and not the instance, they keep their whole time.
        """
        if lifecycle.is_stopping():
            for connection in self._watched:
                if not connection.arrival.has_begun:
                    connection.expires_s = min(connection.expires_s, deadline)
