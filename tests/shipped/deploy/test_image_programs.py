"""The image's programs besides the service: the log keeper, the health check, gunicorn's settings."""

from __future__ import annotations

import os
import re
import signal
import socketserver
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from tests.support.stack.running_stack import ROOT, free_port, wait_for

KEEP_LOG = (sys.executable, str(ROOT / "deploy" / "keep_log.py"))
SAYS_TWO_LINES = "print('{\"event\": \"a\"}', flush=True); print('b')"
FILE_BYTES_MAX = 16 * 1024 * 1024


def keeping(path: Path, program: str) -> subprocess.Popen[bytes]:
    command = [*KEEP_LOG, str(path), sys.executable, "-c", program]
    return subprocess.Popen(command, stdout=subprocess.PIPE)


def test_what_is_said_is_on_the_output_and_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "data-plane.log"

    said, _ = keeping(path, SAYS_TWO_LINES).communicate(timeout=60)

    assert said == b'{"event": "a"}\nb\n'
    assert path.read_bytes() == said


def test_signals_and_the_exit_status_are_the_programs_own(tmp_path: Path) -> None:
    path = tmp_path / "data-plane.log"
    program = (
        "import signal, sys\n"
        "signal.signal(signal.SIGTERM, lambda *_: (print('last word'), sys.exit(7)))\n"
        "print('ready', flush=True); signal.pause()"
    )
    kept = keeping(path, program)
    wait_for(lambda: path.exists() and path.read_text() == "ready\n")

    kept.send_signal(signal.SIGTERM)
    said, _ = kept.communicate(timeout=60)

    assert kept.returncode == 7
    assert said.endswith(b"last word\n")
    assert path.read_bytes() == said


def test_a_full_file_becomes_the_second_and_there_is_no_third(tmp_path: Path) -> None:
    path = tmp_path / "data-plane.log"
    program = f"import sys; [sys.stdout.write('x' * 1023 + '\\n') for _ in range({40 * 1024})]"

    keeping(path, program).communicate(timeout=60)

    files = sorted(each.name for each in tmp_path.iterdir())
    assert files == ["data-plane.log", "data-plane.log.1"]
    assert all(each.stat().st_size < 1.01 * FILE_BYTES_MAX for each in tmp_path.iterdir())


def test_a_file_that_cannot_be_written_holds_nothing_up(tmp_path: Path) -> None:
    said, _ = keeping(tmp_path / "nowhere" / "x.log", SAYS_TWO_LINES).communicate(timeout=60)

    assert said.endswith(b"b\n")


class Plane(BaseHTTPRequestHandler):
    status = 200

    def do_GET(self) -> None:
        self.send_response(self.status if self.path == "/healthz" else 404)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture
def plane() -> Iterator[tuple[type[Plane], int]]:
    handler = type("OnePlane", (Plane,), {})
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever).start()
        yield handler, server.server_address[1]
        server.shutdown()


def asked(port: int) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "deploy" / "healthcheck.py"), str(port)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(("status", "exit_status"), [(200, 0), (503, 1)])
def test_the_health_check_is_the_planes_own_answer(
    plane: tuple[type[Plane], int], status: int, exit_status: int
) -> None:
    handler, port = plane
    handler.status = status

    check = asked(port)

    assert check.returncode == exit_status
    assert (str(status) in check.stdout) == (status != 200)


def test_nobody_there_is_unhealthy_and_said_in_one_line() -> None:
    check = asked(free_port())

    assert check.returncode == 1
    assert check.stdout.count("\n") == 1
    assert "ConnectionRefusedError" in check.stdout


@pytest.mark.parametrize("plane", ["gunicorn.conf.py", "gunicorn.ops.conf.py"])
def test_gunicorn_writes_no_socket_and_trusts_no_client_header(plane: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "gunicorn", "-c", f"deploy/{plane}", "--print-config"]
    environ = {**os.environ, "HOLDFAST_HOME": str(tmp_path), "HOLDFAST_DRAIN_S": "6.5"}

    shown = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True)

    settings = dict(re.findall(r"^(\w+) += (.*)$", shown.stdout, re.MULTILINE))
    # A read-only container has no directory for it.
    assert settings["control_socket_disable"] == "True"
    assert settings["forwarded_allow_ips"] == "[]"
    # The master's timeout includes the drain, if one is set.
    assert settings["graceful_timeout"] == ("22" if plane == "gunicorn.conf.py" else "15")
