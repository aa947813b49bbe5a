"""A local stack for tests: `python -m service run` on separate ports, and its two sets of books."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import requests

from service.payments.settling.invariants import check_invariants
from service.resilience.deadline import Deadline
from tests.support.stack import cluster_template
from tests.support.stack.pools import pool_of

ROOT = Path(__file__).resolve().parents[3]
# Alone it takes 3 s, beside many others a minute.
START_TIMEOUT_S = 180.0
# A wait ends as soon as its condition is true, so a busy machine has the time that it needs.
WAIT_S = 90.0


class RunningStack:
    """A running Holdfast, from the view of its callers and its provider."""

    def __init__(self, process: subprocess.Popen[bytes], run: dict[str, Any]) -> None:
        self.process = process
        self.url: str = run["url"]
        self.ops_url: str = run["ops_url"]
        self.api_key: str = run["api_key"]
        self.pids: dict[str, int] = run["pids"]
        self.database_url: str = run["database_url"]
        self.fault_proxy_control: str = run["fault_proxy_control"]
        self._sandbox_url: str = run["sandbox_url"]
        self._sandbox_ca: str = run["sandbox_ca"]
        self._session = requests.Session()
        self._session.trust_env = False

    def close(self) -> None:
        self._session.close()

    def pay(
        self, key: str | None = None, headers: dict[str, str] | None = None, **body: Any
    ) -> requests.Response:
        """POST /v1/payments with a valid request, changed by `body`."""
        whole = {"amount": 2599, "currency": "usd", "payment_method": "pm_card_visa", **body}
        return self.request(
            "POST",
            "/v1/payments",
            json=whole,
            headers={"Idempotency-Key": key or str(uuid4()), **(headers or {})},
        )

    def get(self, path: str) -> requests.Response:
        return self.request("GET", path)

    def request(self, method: str, path: str, **options: Any) -> requests.Response:
        headers = {"Authorization": f"Bearer {self.api_key}", **options.pop("headers", {})}
        # A new connection for each call: a stale one would look like a refused call.
        return requests.request(method, self.url + path, headers=headers, timeout=60, **options)

    def settled(self, payment: str, timeout_s: float = WAIT_S) -> dict[str, Any]:
        """The payment with its final status; polls like a caller."""
        return wait_for(
            lambda: _if_final(self.get(f"/v1/payments/{payment}").json()), timeout_s=timeout_s
        )

    def control(self, mix: dict[str, float], **more: Any) -> None:
        """Set the provider's behaviour from now on."""
        answer = self.sandbox("POST", "/_control", json={"mix": mix, **more})
        answer.raise_for_status()

    def charges(self, reference: str | None = None) -> list[dict[str, Any]]:
        """The provider's own books: every charge, or those of one of our references."""
        movements = self.sandbox("GET", "/_books").json()["movements"]
        return [
            movement
            for movement in movements
            if movement["kind"] == "charge" and reference in (None, movement["reference"])
        ]

    def metric(self, name: str, **labels: str) -> float:
        """The sum of all series of `name` with these labels, over all workers."""
        total = 0.0
        for line in self._session.get(f"{self.ops_url}/metrics", timeout=60).text.splitlines():
            series, _, value = line.rpartition(" ")
            if series.partition("{")[0] == name and all(
                f'{label}="{text}"' in series for label, text in labels.items()
            ):
                total += float(value)
        return total

    def broken_promises(self) -> dict[str, int]:
        """The invariants that rows of its database violate now; the gauge is a minute old."""
        with pool_of(1, self.database_url) as pool:
            broken = check_invariants(pool, Deadline.after(60))
        return {rule: count for rule, count in broken.items() if count}

    def log_events(self, part: str = "data-plane") -> list[dict[str, Any]]:
        """The JSON log events of a part."""
        home = Path(self.home)
        lines = (home / "logs" / f"{part}.log").read_text().splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]

    home: str = ""

    def sandbox(self, method: str, path: str, **options: Any) -> requests.Response:
        """One call to the sandbox's own addresses: its books, its faults, the payer's actions."""
        return self._session.request(
            method, self._sandbox_url + path, verify=self._sandbox_ca, timeout=60, **options
        )


@contextmanager
def running_stack(
    home: Path, *, first_start: bool = False, keep: bool = False, **settings: str
) -> Iterator[RunningStack]:
    """Start everything below `home`, and stop it together afterwards.

    Its database is copied if `home` has none; with `first_start` the local stack creates it. With
    `keep` it can start again with its data, and the caller ends with `discard`.
    """
    environ = {
        **{name: value for name, value in os.environ.items() if "PROXY" not in name.upper()},
        "HOLDFAST_HOME": str(home),
        "HOLDFAST_BIND": f"127.0.0.1:{free_port()}",
        "HOLDFAST_OPS_BIND": f"127.0.0.1:{free_port()}",
        **settings,
    }
    environ.pop("PROMETHEUS_MULTIPROC_DIR", None)
    home.mkdir(parents=True, exist_ok=True)
    if not first_start and "DATABASE_URL" not in settings:
        cluster_template.put_into(home)
    run_file = home / "run.json"
    run_file.unlink(missing_ok=True)  # A run that was killed left it.
    with (home / "run.out").open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "service", "run", "--end-with-parent"],
            cwd=ROOT,
            env=environ,
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    try:
        wait_for(lambda: run_file.exists() or process.poll() is not None, timeout_s=START_TIMEOUT_S)
        assert process.poll() is None, (home / "run.out").read_text()
        local_stack = RunningStack(process, json.loads(run_file.read_text()))
        local_stack.home = str(home)
        try:
            yield local_stack
        finally:
            local_stack.close()
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.wait(WAIT_S)
        if not keep:
            discard(home)


def discard(home: Path) -> None:
    """Remove data that is not below `home`: a directory closed to PostgreSQL's user has it elsewhere."""
    if (home / "postgres").is_symlink():
        shutil.rmtree((home / "postgres").resolve(), ignore_errors=True)


def wait_for(
    condition: Callable[[], Any], *, timeout_s: float = WAIT_S, every_s: float = 0.05
) -> Any:
    """The condition's first true result; fails the test without one in time."""
    give_up_at_s = time.monotonic() + timeout_s
    while not (result := condition()):
        assert time.monotonic() < give_up_at_s, f"not within {timeout_s:.0f} s"
        time.sleep(every_s)
    return result


_PORTS_A_WORKER = 600
_ports = itertools.count(random.SystemRandom().randrange(_PORTS_A_WORKER))


def free_port() -> int:
    """A port that no other worker chooses, and that the kernel gives to no outgoing connection.

    The program that is to listen on it starts seconds later. The service's own choices begin at 20000.
    """
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 16
    for _ in range(_PORTS_A_WORKER):
        port = 10_000 + worker * _PORTS_A_WORKER + next(_ports) % _PORTS_A_WORKER
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no port is free")


def _if_final(payment: dict[str, Any]) -> dict[str, Any] | None:
    final = ("succeeded", "declined", "requires_capture", "not_executed", "expired", "canceled")
    return payment if payment["status"] in final else None
