"""The worker under gunicorn itself: stuck threads, slow clients, too many requests, and restarts."""

from __future__ import annotations

import http.client
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, as_completed, wait
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from service.web.server.worker import LARGE_AT_ONCE

ROOT = Path(__file__).parents[3]
# Under a second alone; a machine that is shared may be busy with other things.
START_TIMEOUT_S = 180.0
HALF_A_REQUEST = b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{"


@dataclass(frozen=True)
class Answer:
    status: int
    body: bytes
    headers: dict[str, str]

    @property
    def pid(self) -> str:
        return self.body.decode().split()[0]


class Server:
    """A gunicorn with our configuration and the target application."""

    def __init__(self, home: Path, **settings: str) -> None:
        self.home = home
        self.log_path = home / "log"
        environ = {
            **os.environ,
            "HOLDFAST_BIND": "127.0.0.1:0",
            "HOLDFAST_HOME": str(home),
            "PROMETHEUS_MULTIPROC_DIR": str(home / "metrics"),
            **settings,
        }
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "gunicorn", "-c", "deploy/gunicorn.conf.py"),
                    "tests.integration.web.gunicorn_target:app",
                ],
                cwd=ROOT,
                env=environ,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        eventually(lambda: self._port_in_log() is not None, within_s=START_TIMEOUT_S)
        self.port = int(self._port_in_log() or 0)
        eventually(self.is_healthy, within_s=START_TIMEOUT_S)

    def _port_in_log(self) -> str | None:
        assert self.process.poll() is None, self.log_path.read_text()
        found = re.search(r"Listening at: http://127\.0\.0\.1:(\d+)", self.log_path.read_text())
        return found[1] if found else None

    def is_healthy(self) -> bool:
        try:
            return self.get("/healthz").status == 200
        except OSError:
            return False

    def get(self, path: str) -> Answer:
        return self.ask("GET", path)

    def ask(self, method: str, path: str, body: bytes | None = None) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=150)
        try:
            connection.request(method, path, body)
            answer = connection.getresponse()
            content = answer.read()
        finally:
            connection.close()
        headers = {name.lower(): value for name, value in answer.getheaders()}
        return Answer(answer.status, content, headers)

    def troubles(self) -> list[dict[str, Any]]:
        """Its log events of level warning or above."""
        lines = self.log_path.read_text().splitlines(keepends=True)
        events = [json.loads(line) for line in lines if line[0] == "{" and line[-1] == "\n"]
        return [event for event in events if event["level"] not in ("DEBUG", "INFO")]

    def send(self, raw: bytes) -> socket.socket:
        client = socket.create_connection(("127.0.0.1", self.port), timeout=90)
        client.sendall(raw)
        return client

    def hold(
        self, clients: ThreadPoolExecutor, count: int, method: str = "POST"
    ) -> list[Future[Answer]]:
        """Requests that are answered at `release`."""
        return [clients.submit(self.ask, method, "/hold") for _ in range(count)]

    def release(self) -> None:
        (self.home / "release").touch()

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(90)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def eventually(condition: Callable[[], bool], within_s: float = 90.0) -> None:
    end_s = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < end_s, "the condition did not come true"
        time.sleep(0.01)


Start = Callable[..., Server]


@pytest.fixture
def start(tmp_path: Path, clients: ThreadPoolExecutor) -> Iterator[Start]:
    """Starts a separate server; requests that it holds are released before the clients are joined."""
    servers: list[Server] = []

    def start(**settings: str) -> Server:
        servers.append(
            Server(
                tmp_path,
                **{
                    "HOLDFAST_WEB_WORKERS": "1",
                    "HOLDFAST_WEB_THREADS": "2",
                    "HOLDFAST_DRAIN_S": "0.3",
                    **settings,
                },
            )
        )
        return servers[-1]

    yield start
    for server in servers:
        server.release()
        server.stop()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for the tests that leave it as it was."""
    server = Server(
        tmp_path_factory.mktemp("gunicorn"), HOLDFAST_WEB_WORKERS="1", HOLDFAST_WEB_THREADS="2"
    )
    yield server
    server.stop()


@pytest.fixture
def clients() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(64) as clients:
        yield clients


def test_probes_are_answered_while_every_thread_is_stuck(
    start: Start, clients: ThreadPoolExecutor
) -> None:
    server = start()
    held = server.hold(clients, 2)
    eventually(lambda: server.get("/healthz").status == 200)

    probes = [server.get(path) for path in ("/healthz", "/readyz") * 10]

    assert not any(request.done() for request in held)
    assert [probe.status for probe in probes] == [200] * 20


def test_write_without_a_thread_in_time_gets_a_problem(
    start: Start, clients: ThreadPoolExecutor
) -> None:
    server = start()
    # Two threads serve two of them, whichever come first.
    requests = server.hold(clients, 5)

    refused = [request.result() for request in islice(as_completed(requests, 90), 3)]
    server.release()
    served = [request.result(90) for request in requests]

    statuses = sorted(answer.status for answer in served)
    assert statuses == [200, 200, 503, 503, 503]
    problem = refused[0]
    document = json.loads(problem.body)
    assert problem.headers["content-type"] == "application/problem+json"
    assert problem.headers["retry-after"] == "1"
    assert document["code"] == "deadline_exceeded"
    assert document["retry_safe"] is True
    assert document["request_id"] == problem.headers["x-request-id"]


def test_full_queue_refuses_writes_and_accepts_reads(
    start: Start, clients: ThreadPoolExecutor
) -> None:
    # A queued request waits for two minutes: one that has ended was refused by a full queue.
    server = start(HOLDFAST_REQUEST_TIMEOUT_MS="127000", HOLDFAST_GRACEFUL_STOP_S="128")
    # 2 threads and a line of 8 each, all taken by writes; a fifth of them is too much.
    held = server.hold(clients, 22)
    eventually(lambda: sum(request.done() for request in held) >= 4)

    reads = server.hold(clients, 4, "GET")
    eventually(lambda: sum(request.done() for request in held) >= 8)
    refused = [request.result() for request in held if request.done()]
    server.release()
    wait([*held, *reads])

    assert [answer.status for answer in refused] == [503] * 8
    assert all(b"More requests wait than can be served" in answer.body for answer in refused)
    assert [read.result().status for read in reads] == [200] * 4


def test_half_sent_requests_take_no_thread(server: Server) -> None:
    attackers = [server.send(HALF_A_REQUEST) for _ in range(48)]

    first = server.ask("POST", "/echo", b"x" * 1000)
    # It was served beside them, and not when they had been dropped.
    assert select.select(attackers[-1:], [], [], 0)[0] == []
    answers = [server.ask("POST", "/echo", b"x" * 1000) for _ in range(20)]

    assert [answer.status for answer in (first, *answers)] == [200] * 21
    for attacker in attackers:
        attacker.close()


@pytest.mark.slow
def test_clients_that_never_read_let_go_of_their_threads(start: Start) -> None:
    server = start()
    attackers = [server.send(b"GET /flood HTTP/1.1\r\nHost: x\r\n\r\n") for _ in range(2)]
    eventually(lambda: server.ask("POST", "/echo", b"x").status == 503)

    # 5 s for each write that still took a part of the answer; about three.
    eventually(lambda: server.ask("POST", "/echo", b"x").status == 200, within_s=120.0)

    for attacker in attackers:
        attacker.close()


@pytest.mark.slow
def test_a_client_that_never_reads_is_one_warning(start: Start) -> None:
    server = start()
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect(("127.0.0.1", server.port))

    client.sendall(b"GET /flood HTTP/1.1\r\nHost: x\r\n\r\n")
    eventually(lambda: len(server.troubles()) > 0, within_s=120.0)

    assert [(event["level"], event["event"]) for event in server.troubles()] == [
        ("WARNING", "http.answer_unread")
    ]
    assert "Traceback" not in server.log_path.read_text()
    client.close()


def test_request_in_pieces_and_the_next_one_are_served(server: Server) -> None:
    client = server.send(b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-")
    for piece in (b"Length: 6\r\n\r", b"\nabc", b"defGET /echo HTTP/1.1\r\nHost: x\r\n\r\n"):
        client.sendall(piece)

    received = received_until(client, b" 0")

    assert b" 6HTTP/1.1 200" in received
    client.close()


def test_a_chunked_body_is_received_before_a_thread_is_taken(server: Server) -> None:
    head = b"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    client = server.send(head + b"3\r\nabc\r\n")

    client.sendall(b"4\r\ndefg\r\n0\r\n\r\n")

    assert received_until(client, b" 7").startswith(b"HTTP/1.1 200 OK")
    client.close()


def test_a_body_over_the_limit_is_refused_unread(server: Server) -> None:
    head = b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 65537\r\n"

    with server.send(head + b"Expect: 100-continue\r\n\r\n") as client:
        answer = client.recv(65536)

    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"application/problem+json" in answer


def test_few_large_requests_are_received_at_once(server: Server) -> None:
    head = b"POST /v1/webhooks/x HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n"
    clients = [server.send(head + bytes(200_000)) for _ in range(LARGE_AT_ONCE + 4)]

    def refused() -> list[socket.socket]:
        return select.select(clients, [], [], 0)[0]

    eventually(lambda: len(refused()) >= 4)
    # The others are still being received, or have been dropped by now, without an answer.
    answers = [answer for client in refused() if (answer := client.recv(65536))]
    assert [answer[:13] for answer in answers] == [b"HTTP/1.1 503 "] * 4
    assert server.ask("POST", "/echo", b"x").status == 200
    for client in clients:
        client.close()


def test_the_client_that_asks_first_is_told_to_continue_once(server: Server) -> None:
    head = b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n"

    with server.send(head) as client:
        first = client.recv(65536)
        client.sendall(b"abc")
        second = client.recv(65536)

    assert first == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert second.startswith(b"HTTP/1.1 200 OK")


def received_until(client: socket.socket, end: bytes) -> bytes:
    received = b""
    while not received.endswith(end):
        piece = client.recv(65536)
        assert piece, received
        received += piece
    return received


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"\x16\x03\x01 4242424242424242\r\n\r\n", 400),
        (b"GET /" + b"a" * 5000 + b" HTTP/1.1\r\n\r\n", 414),
        (b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 100 + b"\r\n", 431),
        (b"GET / HTTP/1.1\r\nX: " + b"y" * 40000, 431),
        (b"GET / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: wat\r\n\r\n0\r\n\r\n", 501),
    ],
)
def test_input_that_is_not_http_gets_a_problem_and_no_log(
    server: Server, raw: bytes, status: int
) -> None:
    with server.send(raw) as client:
        answer = client.recv(65536)

    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(f"HTTP/1.1 {status} ".encode())
    assert json.loads(body)["status"] == status
    # Longer than what a request id in hexadecimal holds by chance.
    assert b"42424242" not in body
    assert "42424242" not in server.log_path.read_text()


def test_sigterm_shows_on_readyz_and_finishes_open_requests(
    start: Start, clients: ThreadPoolExecutor
) -> None:
    server = start(HOLDFAST_DRAIN_S="8")
    held = server.hold(clients, 2)
    eventually(lambda: server.get("/healthz").status == 200)

    server.process.send_signal(signal.SIGTERM)
    eventually(lambda: server.get("/readyz").status == 503)
    late = [server.get("/healthz") for _ in range(10)]
    server.release()
    server.process.wait(90)

    assert {answer.status for answer in late} == {200}
    assert {answer.headers["connection"] for answer in late} == {"close"}
    assert [request.result().status for request in held] == [200, 200]
    assert server.process.returncode == 0


def test_request_during_draining_keeps_its_whole_time(
    start: Start, clients: ThreadPoolExecutor
) -> None:
    server = start(
        HOLDFAST_DRAIN_S="5", HOLDFAST_GRACEFUL_STOP_S="60", HOLDFAST_REQUEST_TIMEOUT_MS="3000"
    )
    server.process.send_signal(signal.SIGTERM)
    stopping_s = time.monotonic()
    eventually(lambda: server.get("/readyz").status == 503)
    late = server.hold(clients, 1)

    eventually(lambda: time.monotonic() > stopping_s + 6.5)
    server.release()

    assert late[0].result(90).status == 200
    server.process.wait(90)


@pytest.mark.parametrize("how", ["hup", "max_requests"])
def test_workers_are_replaced_without_a_failed_request(
    start: Start, clients: ThreadPoolExecutor, how: str
) -> None:
    recycled_often = {"GUNICORN_CMD_ARGS": "--max-requests 40 --max-requests-jitter 10"}
    server = start(HOLDFAST_WEB_WORKERS="2", **(recycled_often if how == "max_requests" else {}))
    stop = threading.Event()
    loads = [clients.submit(keep_asking, server.port, stop) for _ in range(4)]
    before: set[str] = set()
    after: set[str] = set()

    def are_known() -> bool:
        before.add(server.get("/echo").pid)
        return len(before) >= 2

    def are_replaced() -> bool:
        after.add(server.get("/echo").pid)
        return len(after - before) >= 2

    try:
        eventually(are_known)
        if how == "hup":
            server.process.send_signal(signal.SIGHUP)
        eventually(are_replaced, within_s=120.0)
    finally:
        stop.set()

    failures = [failure for load in loads for failure in load.result()]
    assert failures == []


def keep_asking(port: int, stop: threading.Event) -> list[str]:
    """Send requests over one kept connection, replaced after `close`; the failures."""
    failures = []
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=90)
    while not stop.is_set():
        try:
            connection.request("POST", "/echo", b"abc")
            answer = connection.getresponse()
            answer.read()
            if answer.status != 200:
                failures.append(f"status {answer.status}")
        except (OSError, http.client.HTTPException) as error:
            failures.append(repr(error))
            connection.close()
        stop.wait(0.002)
    connection.close()
    return failures
