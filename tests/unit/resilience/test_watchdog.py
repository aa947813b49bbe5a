"""The watchdog ends exactly the calls past their deadline, on real sockets."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from time import monotonic

import pytest

from service.resilience.deadline import Deadline
from service.resilience.watchdog import Watchdog

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def test_a_read_that_would_block_for_ever_ends_at_the_deadline(pair):
    began_s = monotonic()

    with Watchdog().guard(pair[0].fileno(), Deadline.after(0.1)) as watch:
        assert pair[0].recv(1) == b""

    assert watch.fired
    assert 0.09 < monotonic() - began_s < 30


def test_a_call_that_ends_in_time_is_left_alone(pair):
    deadline = Deadline.after(2)
    with Watchdog().guard(pair[0].fileno(), deadline) as watch:
        pair[1].sendall(b"x")
        assert pair[0].recv(1) == b"x"
    threading.Event().wait(deadline.remaining_s() + 0.05)

    pair[1].sendall(b"y")

    assert pair[0].recv(1) == b"y"
    assert not watch.fired


def test_an_earlier_deadline_that_comes_later_is_kept(pair):
    watchdog = Watchdog()
    other, far = socket.socketpair()
    with other, far, watchdog.guard(other.fileno(), Deadline.after(60)):
        began_s = monotonic()
        with watchdog.guard(pair[0].fileno(), Deadline.after(0.05)):
            pair[0].recv(1)

        assert monotonic() - began_s < 30
        far.sendall(b"x")
        assert other.recv(1) == b"x"


def test_passed_deadline_ends_the_call_at_once(pair):
    with Watchdog().guard(pair[0].fileno(), Deadline.after(-1)) as watch:
        assert pair[0].recv(1) == b""

    assert watch.fired


def test_reused_descriptor_of_another_socket_is_left_alone(pair):
    doomed, peer = socket.socketpair()
    number = doomed.fileno()
    with Watchdog().guard(number, Deadline.after(0.1)) as watch:
        doomed.close()
        # The kernel gives the lowest free number: the next socket takes the old one's place.
        os.dup2(pair[0].fileno(), number)
        innocent = socket.socket(fileno=number)
        assert peer.recv(1) == b""
        pair[1].sendall(b"x")

        assert innocent.recv(1) == b"x"
        assert watch.fired
    innocent.close()
    peer.close()


def test_many_calls_leave_neither_open_files_nor_threads_behind(pair):
    watchdog = Watchdog()
    with watchdog.guard(pair[0].fileno(), Deadline.after(60)):
        pass
    files, threads = len(os.listdir("/proc/self/fd")), threading.active_count()

    for _ in range(500):
        with watchdog.guard(pair[0].fileno(), Deadline.after(60)):
            pass

    assert len(os.listdir("/proc/self/fd")) == files
    assert threading.active_count() == threads


def test_releasing_twice_is_harmless(pair):
    watch = Watchdog().watch(pair[0].fileno(), Deadline.after(60))

    watch.release()
    watch.release()

    assert not watch.fired
