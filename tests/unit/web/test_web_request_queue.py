"""The queue before a worker's threads refuses early, and reads are never refused before writes."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from concurrent.futures import Future

import pytest
from gunicorn.config import Config

from service.web.server.connection import ClientConnection
from service.web.server.request_queue import QUEUED_A_THREAD_MAX, RequestQueue

WRITE = b"POST /v1/payments HTTP/1.1\r\n\r\n"
READ = b"GET /v1/payments HTTP/1.1\r\n\r\n"


@pytest.fixture
def sockets() -> Iterator[list[socket.socket]]:
    opened: list[socket.socket] = []
    yield opened
    for each in opened:
        each.close()


@pytest.fixture
def connect(sockets):
    def connect(request: bytes, arrived_s: float = 0.0) -> ClientConnection:
        ours, theirs = socket.socketpair()
        sockets.extend((ours, theirs))
        connection = ClientConnection(Config(), ours, ("127.0.0.1", 1), ("127.0.0.1", 2))
        connection.request, connection.arrived_s = request, arrived_s
        return connection

    return connect


def admit(queue: RequestQueue, connection: ClientConnection) -> Future:
    future: Future = Future()
    if queue.admit(connection):
        queue.wait(future, connection)
    return future


def test_fast_requests_make_the_queue_long_and_slow_ones_short(connect):
    fast, slow = RequestQueue(1, wait_s=1.0), RequestQueue(1, wait_s=1.0)
    for queue, took_s in ((fast, 0.001), (slow, 60.0)):
        served = connect(WRITE)
        admit(queue, served)
        for _ in range(100):
            queue.measure(served, took_s)

    lengths = []
    for queue in (fast, slow):
        length = 0
        while not queue.is_full:
            admit(queue, connect(WRITE))
            length += 1
        lengths.append(length)

    assert lengths == [QUEUED_A_THREAD_MAX, 1]


def test_a_read_displaces_the_newest_write_and_no_read(connect):
    queue = RequestQueue(1, wait_s=1.0)
    writes = [connect(WRITE) for _ in range(3)]
    for each in (*writes, connect(READ)):
        admit(queue, each)

    displaced = [queue.displace_write(connect(READ)) for _ in range(3)]

    # The first write has the thread.
    assert displaced == [writes[2], writes[1], None]
    assert queue.displace_write(connect(WRITE)) is None


def test_a_write_that_waited_too_long_is_canceled_before_a_read(connect):
    queue = RequestQueue(1, wait_s=1.0)
    admit(queue, connect(WRITE))
    write, read = connect(WRITE), connect(READ)
    futures = [admit(queue, write), admit(queue, read)]

    late = [queue.cancel_late(now_s) for now_s in (0.9, 1.1, 1.9, 2.1)]

    assert late == [[], [write], [], [read]]
    assert all(future.cancelled() for future in futures)
    assert not queue.has_waiting
