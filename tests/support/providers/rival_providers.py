"""Stripe-compatible providers of other projects, each in a separate process."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
# The directory in which `make test` installs it, beside Python's packages.
STRIPE_MOCK = Path(sys.prefix) / "stripe-mock" / "node_modules"


@contextlib.contextmanager
def running_localstripe() -> Iterator[str]:
    """localstripe's address: PaymentIntents; it ignores idempotency keys."""
    with _running([sys.executable, "-m", "tests.support.processes.localstripe_server"]) as url:
        yield url


@contextlib.contextmanager
def running_stripe_mock() -> Iterator[str]:
    """stripe-stateful-mock's address: Charges; it honours idempotency keys."""
    assert STRIPE_MOCK.exists(), "It is not installed: run  make .venv/stripe-mock.lock"
    command = ["node", "tests/stripe_mock/server.js"]
    with _running(command, NODE_PATH=str(STRIPE_MOCK)) as url:
        yield url


@contextlib.contextmanager
def _running(command: list[str], **environ: str) -> Iterator[str]:
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, **environ},
        # The closed pipe ends the process after the test's end.
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with process:
        assert process.stdout is not None
        port = process.stdout.readline().strip().decode()
        assert port, f"{command} did not start: exit {process.wait()}"
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(60)
