"""Under a real gunicorn, through kill -9, reload and planned restarts, every answer is counted."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from service.observability.metrics.registry import SharedRegistry, read_samples

WORKERS = 2
APPLICATION = """
import os
from service.observability.metrics import catalogue as metrics
def app(environ, start_response):
    metrics.payments_good_total.inc()
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [str(os.getpid()).encode()]
"""
CONFIGURATION = """
from service.observability.metrics import slots
bind = "127.0.0.1:{port}"
workers, threads, worker_class = 2, 2, "gthread"
max_requests, max_requests_jitter = 25, 5
control_socket_disable = True
graceful_timeout = 2
def post_fork(server, worker):
    slots.claim("web")
"""


class Server:
    def __init__(self, home: Path) -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            self.port = taken.getsockname()[1]
        self.directory = home / "metrics"
        (home / "counting.py").write_text(APPLICATION)
        configuration = home / "gunicorn.conf.py"
        configuration.write_text(CONFIGURATION.format(port=self.port))
        # The master imports the catalogue too, as ours does; that must cost no slot.
        self._popen = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "gunicorn",
                "-c",
                str(configuration),
                "--preload",
                "counting:app",
            ],
            cwd=home,
            env={
                **os.environ,
                "PROMETHEUS_MULTIPROC_DIR": str(self.directory),
                "PYTHONPATH": f"{home}:{Path(__file__).parents[3]}",
            },
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self.answered = 0

    def ask(self, times: int) -> set[int]:
        """Ask so often and count the answers; returns the workers that gave them."""
        pids = set()
        end = time.monotonic() + 60
        while times and time.monotonic() < end:
            try:
                pids.add(self._ask_once())
            except (OSError, http.client.HTTPException):
                # No listener yet, or a worker was killed during the request: no answer.
                time.sleep(0.02)
                continue
            self.answered += 1
            times -= 1
        assert times == 0
        return pids

    def _ask_once(self) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        with contextlib.closing(connection):
            connection.request("GET", "/")
            return int(connection.getresponse().read())

    def signal_master(self, number: int) -> None:
        self._popen.send_signal(number)

    def stop(self) -> None:
        self._popen.terminate()
        self._popen.wait(60)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path)
    yield server
    server.stop()


def wait_until(is_so: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.02)


def is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_every_answer_is_counted_through_kills_and_reloads(server):
    seen = server.ask(30)
    for _ in range(3):
        victim = max(server.ask(5))
        os.kill(victim, signal.SIGKILL)
        wait_until(lambda victim=victim: is_gone(victim))
        seen |= server.ask(30)
    server.signal_master(signal.SIGHUP)
    wait_until(lambda: not server.ask(1) & seen)
    server.ask(30)

    counted = read_samples(SharedRegistry(server.directory))

    assert counted["holdfast_payments_good_total", ()] == server.answered
    # A reload has the old and the new workers side by side; a thousand would need no more.
    assert len(list(server.directory.glob("web-*.lock"))) <= 2 * WORKERS + 1
    assert not list(server.directory.glob("process-*"))
