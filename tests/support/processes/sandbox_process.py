"""The sandbox provider in a test: a separate process, over TLS, on a free port."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import requests

Answer = TypeVar("Answer")

API_KEY = "sk_test_sandbox"
# On a busy machine; every wait ends as soon as its condition is true.
WITHIN_S = 30.0


class SandboxProcess:
    """A running sandbox; `url` stays the same over `kill` and `start`."""

    def __init__(self, home: Path, *options: str) -> None:
        self.home = home
        self._options = options
        self._port = 0
        self.start()

    def start(self) -> None:
        """Start it (again, on the same port) and wait until it serves."""
        command = [sys.executable, "-m", "service.lab.sandbox", "--home", str(self.home)]
        self.process = subprocess.Popen(
            [*command, "--port", str(self._port), *self._options], stdout=subprocess.PIPE
        )
        assert self.process.stdout is not None
        said = self.process.stdout.readline()
        if not said:
            raise RuntimeError(f"The sandbox did not start: exit {self.process.wait()}.")
        self.url: str = json.loads(said)["url"]
        self.ca_file: str = json.loads(said)["ca_file"]
        self._port = int(self.url.rpartition(":")[2])
        self._session = requests.Session()
        self._session.trust_env = False

    def kill(self) -> None:
        """kill -9."""
        self.process.kill()
        self._wait()

    def stop(self) -> float:
        """SIGTERM; returns the seconds until its end."""
        begun_s = time.monotonic()
        self.process.terminate()
        self._wait()
        return time.monotonic() - begun_s

    def _wait(self) -> None:
        self.process.wait(timeout=60)
        assert self.process.stdout is not None
        self.process.stdout.close()
        self._session.close()

    def ask(self, method: str, path: str, **options: Any) -> requests.Response:
        """One HTTPS call without credentials, certificate verified."""
        return self._session.request(
            method, self.url + path, verify=self.ca_file, timeout=60, **options
        )

    def control(self, **plan: Any) -> dict[str, Any]:
        """Set a plan of faults: mix=, reference=, operations=, times=, honour_keys=, ..."""
        answer = self.ask("POST", "/_control", json=plan)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def faults(self) -> dict[str, Any]:
        """The current plan, with `struck` (since it was set) and `calls` (since the start)."""
        return dict(self.ask("GET", "/_control").json())

    def clear(self) -> None:
        """Remove all faults."""
        self.ask("DELETE", "/_control")

    def books(self, **filters: str) -> list[dict[str, Any]]:
        """Movements of money in order; filter by payment_id=, reference=, payment_intent=, kind=."""
        return list(self.ask("GET", "/_books", params=filters).json()["movements"])

    def wait_for_books(self, *, count: int = 1, **filters: str) -> list[dict[str, Any]]:
        """Like `books`, as soon as this many movements exist."""
        return _within(WITHIN_S, lambda: self._at_least(count, self.books(**filters)))

    def wait_for_injection(self, *, count: int = 1) -> dict[str, int]:
        """The injected faults since the plan was set, as soon as this many exist."""
        return _within(WITHIN_S, lambda: self._injected(count))

    @staticmethod
    def _at_least(count: int, rows: list[dict[str, Any]]) -> list[dict[str, Any]] | None:
        return rows if len(rows) >= count else None

    def _injected(self, count: int) -> dict[str, int] | None:
        struck = self.faults()["struck"]
        return struck if sum(struck.values()) >= count else None

    def empty_books(self) -> None:
        """Forget all objects, movements and saved answers, as if it had just started."""
        books = sqlite3.connect(self.home / "books.sqlite", timeout=60)
        try:
            with books:
                for table in ("objects", "movements", "answers"):
                    books.execute(f"DELETE FROM {table}")  # noqa: S608
        finally:
            books.close()

    def totals(self) -> dict[str, dict[str, int]]:
        """Sums of all movements by currency and kind."""
        return dict(self.ask("GET", "/_books").json()["totals"])

    def complete_action(self, payment_intent: str, *, success: bool = True) -> dict[str, Any]:
        """The payer's action in a 3-D Secure challenge."""
        decision = {"payment_intent": payment_intent, "success": success}
        return dict(self.ask("POST", "/_complete_action", json=decision).json())

    def dashboard(self, act: str, **given: Any) -> dict[str, Any]:
        """An act beside the API: refund, capture, cancel, pay, charge, fail_refund, dispute,
        close_dispute, expire; the changed object."""
        answer = self.ask("POST", "/_dashboard", json={"act": act, **given})
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def stripe(
        self, method: str, path: str, *, key: str | None = None, **form: Any
    ) -> requests.Response:
        """One call to the API in the form of Stripe's clients; `form` has flat, bracketed keys."""
        headers = {"Authorization": f"Bearer {API_KEY}"}
        if key is not None:
            headers["Idempotency-Key"] = key
        where = "params" if method == "GET" else "data"
        return self.ask(method, f"/v1{path}", headers=headers, **{where: form})


def _within(seconds: float, ask: Callable[[], Answer | None]) -> Answer:
    end_s = time.monotonic() + seconds
    while (answer := ask()) is None:
        assert time.monotonic() < end_s, "It did not happen in time."
        time.sleep(0.01)
    return answer


@contextmanager
def running_sandbox(tmp_path: Path, **options: str | int) -> Iterator[SandboxProcess]:
    """A sandbox with its books in `tmp_path`; options as on the command line (webhook_url=, seed=)."""
    given = [
        word
        for name, value in options.items()
        for word in (f"--{name.replace('_', '-')}", str(value))
    ]
    sandbox = SandboxProcess(tmp_path, *given)
    try:
        yield sandbox
    finally:
        if sandbox.process.poll() is None:
            sandbox.stop()
