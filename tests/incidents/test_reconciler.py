"""Several reconcilers, killed repeatedly: every payment settles once, and none is lost."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import uuid4

from tests.support.stack.running_stack import ROOT, RunningStack, running_stack

PAYMENTS = 24
KILLS = 8


def test_killed_reconcilers_lose_nothing_and_charge_once(tmp_path):
    with running_stack(
        tmp_path / "local_stack", HOLDFAST_PROVIDER_TIMEOUT_MS="1000", HOLDFAST_WEB_WORKERS="1"
    ) as local_stack:
        # Half of the payments were charged before the answer was lost, half were not.
        local_stack.control({"reset": 1, "reset_after_charge": 1}, operations=["confirm"])
        references = [str(uuid4()) for _ in range(PAYMENTS)]
        with ThreadPoolExecutor(8) as executor:
            answers = list(executor.map(lambda r: local_stack.pay(reference=r), references))
        local_stack.control({"slow": 1}, slow_ms=150, operations=["retrieve", "confirm", "create"])
        extra = [_reconciler(local_stack, tmp_path) for _ in range(2)]
        try:
            for _ in range(KILLS):
                # The kill may hit any line of its work.
                time.sleep(random.uniform(0.1, 0.6))
                victim = extra.pop(0)
                victim.kill()
                victim.wait()
                extra.append(_reconciler(local_stack, tmp_path))
            local_stack.control({"ok": 1})
            settled = [local_stack.settled(answer.json()["id"], timeout_s=90) for answer in answers]
        finally:
            for process in extra:
                process.kill()
                process.wait()

        assert {payment["status"] for payment in settled} == {"succeeded"}
        charges = [movement["reference"] for movement in local_stack.charges()]
        assert sorted(charges) == sorted(references)
        assert local_stack.broken_promises() == {}


def _reconciler(local_stack: RunningStack, tmp_path: Path) -> subprocess.Popen[bytes]:
    """A second reconciler on the local stack's database."""
    environ = dict(_environ_of(local_stack.pids["reconciler"]))
    environ["PROMETHEUS_MULTIPROC_DIR"] = str(tmp_path / "metrics")
    return subprocess.Popen(
        [sys.executable, "-m", "service", "reconcile"],
        cwd=ROOT,
        env=environ,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        # A separate session: signals to the test must not stop it.
        start_new_session=True,
    )


def _environ_of(pid: int) -> list[tuple[str, str]]:
    entries = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    pairs = (entry.decode().partition("=") for entry in entries if entry)
    return [(name, value) for name, _, value in pairs]
