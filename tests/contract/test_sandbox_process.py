"""The sandbox as a process: its state after kill -9, its end, and many concurrent callers."""

from __future__ import annotations

import os
import socket
import ssl
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
import requests

from service.lab.sandbox import certificate
from service.lab.sandbox.books import Books
from service.lab.sandbox.control import Control
from service.lab.sandbox.faults import Faults
from service.lab.sandbox.payment_intents import PaymentIntents
from service.lab.sandbox.wire import Request
from tests.support.processes.sandbox_process import SandboxProcess, running_sandbox


def pay(sandbox: SandboxProcess, key: str) -> requests.Response:
    form = {"amount": "900", "currency": "usd", "payment_method": "pm_card_visa", "confirm": "true"}
    return sandbox.stripe(
        "POST", "/payment_intents", key=key, **form, **{"metadata[payment_id]": key}
    )


def test_the_service_hands_every_option_on_to_the_sandbox(tmp_path):
    command = [sys.executable, "-m", "service", "sandbox", "--home", str(tmp_path), "--port", "0"]

    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        said = process.stdout.readline()
        process.terminate()

    assert str(tmp_path).encode() in said


def test_books_keys_and_certificate_outlive_kill_9(tmp_path):
    with running_sandbox(tmp_path) as sandbox:
        paid = [pay(sandbox, f"pay_{n}") for n in range(3)]
        authority = (tmp_path / "tls" / "ca.pem").read_bytes()

        sandbox.kill()
        sandbox.start()

        assert [row["payment_id"] for row in sandbox.books()] == ["pay_0", "pay_1", "pay_2"]
        replayed = pay(sandbox, "pay_1")
        assert replayed.headers["Idempotent-Replayed"] == "true"
        assert replayed.content == paid[1].content
        assert (tmp_path / "tls" / "ca.pem").read_bytes() == authority
        assert (tmp_path / "tls" / "server.key").stat().st_mode & 0o777 == 0o600


def test_kill_9_leaves_a_charge_with_its_saved_answer_or_neither(tmp_path):
    with running_sandbox(tmp_path) as sandbox:
        answered: list[str] = []
        enough = threading.Event()

        def pay_until_killed(worker: int) -> None:
            for number in range(10_000):
                try:
                    pay(sandbox, f"pay_{worker}_{number}")
                except requests.RequestException:
                    return
                answered.append(f"pay_{worker}_{number}")
                if len(answered) >= 20:
                    enough.set()

        with ThreadPoolExecutor(3) as pool:
            for worker in range(3):
                pool.submit(pay_until_killed, worker)
            assert enough.wait(60)
            sandbox.process.kill()
        sandbox.kill()
        sandbox.start()

        moved = [row["payment_id"] for row in sandbox.books()]
        assert len(moved) == len(set(moved))
        assert set(answered) <= set(moved)
        for payment_id in set(moved) - set(answered):
            assert pay(sandbox, payment_id).headers["Idempotent-Replayed"] == "true"


def test_sigterm_ends_it_at_once_although_calls_hang(tmp_path):
    with running_sandbox(tmp_path) as sandbox, ThreadPoolExecutor(1) as pool:
        sandbox.control(mix={"hang": 1}, hang_s=60)
        hanging = pool.submit(pay, sandbox, "pay_hung")
        sandbox.wait_for_injection()

        took_s = sandbox.stop()

        # Long before the end of their hang of one minute.
        assert took_s < 40
        assert sandbox.process.returncode == 0
        assert isinstance(hanging.exception(timeout=60), requests.ConnectionError)


def test_one_home_has_one_sandbox(tmp_path):
    with running_sandbox(tmp_path):
        command = [sys.executable, "-m", "service.lab.sandbox", "--home", str(tmp_path)]
        second = subprocess.run(command, capture_output=True, text=True, check=False)

    assert second.returncode == 2
    assert "Another sandbox keeps its books" in second.stderr


def test_many_callers_at_once_are_each_charged_once(sandbox):
    keys = [f"pay_{uuid4().hex}" for _ in range(40)]

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda key: pay(sandbox, key), keys))

    assert {answer.status_code for answer in answers} == {200}
    moved = [row["payment_id"] for row in sandbox.books() if row["payment_id"] in keys]
    assert sorted(moved) == sorted(keys)


def test_a_seed_makes_the_faults_repeatable(tmp_path):
    def statuses(home: str) -> list[int]:
        with running_sandbox(tmp_path / home, seed=7) as sandbox:
            sandbox.control(mix={"ok": 1, "error_503": 1, "error_429": 1})
            return [pay(sandbox, f"pay_{n}").status_code for n in range(12)]

    first = statuses("one")

    assert statuses("two") == first
    assert len(set(first)) > 1


def test_a_certificate_is_kept_until_it_is_near_its_end(tmp_path):
    folder, now = tmp_path / "tls", datetime.now(UTC)
    certificate.server_context(folder, now=now)
    first = (folder / "ca.pem").read_bytes()

    certificate.server_context(folder, now=now + timedelta(days=300))
    kept = (folder / "ca.pem").read_bytes()
    certificate.server_context(folder, now=now + timedelta(days=370))

    assert kept == first
    assert (folder / "ca.pem").read_bytes() != first


def test_only_callers_on_the_machine_may_control_it(tmp_path):
    books = Books(tmp_path / "books.sqlite", announce=lambda *_event: None)
    control = Control(books, Faults(seed=None), PaymentIntents(hosted_url=""))
    request = Request("POST", "/_control", "", {}, b"{}", is_local=False, is_last=False)

    answers = {
        is_local: control.answer(replace(request, is_local=is_local)).status
        for is_local in (False, True)
    }
    books.close()

    assert answers == {False: 403, True: 200}


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET http://[ HTTP/1.1\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", 411),
        (b"POST / HTTP/1.1\r\nContent-Length: 99999999\r\n\r\n", 413),
        (b"GET / HTTP/1.1\r\nX: " + b"x" * 40_000, 431),
    ],
)
def test_what_is_no_request_is_refused_and_the_connection_closed(sandbox, sent, status):
    port = int(sandbox.url.rpartition(":")[2])
    context = ssl.create_default_context(cafile=sandbox.ca_file)

    with (
        socket.create_connection(("127.0.0.1", port), timeout=60) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as client,
    ):
        client.sendall(sent)
        head = client.recv(4096)
        rest = client.recv(4096)

    assert head.startswith(b"HTTP/1.1 %d " % status)
    assert rest == b""


def test_it_imports_nothing_of_the_service():
    program = (
        "import sys, service.lab.sandbox.__main__;"
        "print([name for name in sys.modules if name.startswith('service.')"
        " and not name.startswith('service.lab.sandbox') and name != 'service.lab'])"
    )
    shown = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=os.environ
    )

    assert shown.stdout.strip() == "[]"
