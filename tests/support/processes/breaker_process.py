"""A process with one breaker, controlled by lines on standard input.

`python -m tests.support.processes.breaker_process BOARD [hasty]`. Commands: `fail N`, `state`, `probe` (leases a probe and
says nothing about it), `good` (the probe went well), `storm SECONDS` (four threads probe a dead
provider as often as they may; answers when each probe began and ended).
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from time import monotonic, sleep
from typing import IO, cast

from service.resilience.breaker.breaker import Breaker, BreakerOpen, Permit
from service.resilience.breaker.rules import BreakerRules


def main(page_path: Path, *, is_hasty: bool) -> None:
    # Short pauses, so that a test sees many probes.
    rules = BreakerRules(open_s=0.05 if is_hasty else 0.75)
    breaker = Breaker("fake", rules=rules, page_path=page_path)
    probe: Permit | None = None
    print("ready", flush=True)
    for line in sys.stdin:
        match line.split():
            case ["fail", count]:
                let_through = 0
                for _ in range(int(count)):
                    try:
                        breaker.admit().record(failed=True)
                        let_through += 1
                    except BreakerOpen:
                        break
                print(let_through, flush=True)
            case ["state"]:
                print(breaker.state, flush=True)
            case ["probe"]:
                try:
                    probe = breaker.admit(may_probe=True)
                    print("let through", flush=True)
                except BreakerOpen:
                    print("refused", flush=True)
            case ["storm", seconds]:
                print(json.dumps(storm(breaker, float(seconds))), flush=True)
            case ["good"] if probe is not None:
                probe.record(failed=False)
                print(breaker.state, flush=True)


def storm(breaker: Breaker, seconds: float) -> list[tuple[float, float]]:
    until_s = monotonic() + seconds
    probes = []

    def probe_on() -> None:
        while monotonic() < until_s:
            with suppress(BreakerOpen), breaker.admit(may_probe=True) as permit:
                began_s = monotonic()
                sleep(0.01)
                probes.append((began_s, monotonic()))
                permit.record(failed=True)
            sleep(0.001)

    threads = [threading.Thread(target=probe_on) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return probes


class BreakerProcess:
    """The process from the test's side."""

    def __init__(self, page_path: Path, *options: str) -> None:
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "tests.support.processes.breaker_process",
                str(page_path),
                *options,
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._to = cast("IO[str]", self._process.stdin)
        self._from = cast("IO[str]", self._process.stdout)

    def wait_until_ready(self) -> None:
        assert self._from.readline().strip() == "ready"

    def ask(self, command: str) -> str:
        self.tell(command)
        return self.answer()

    def tell(self, command: str) -> None:
        self._to.write(command + "\n")
        self._to.flush()

    def answer(self) -> str:
        return self._from.readline().strip()

    def kill(self) -> None:
        """SIGKILL: the process cannot clean up."""
        self._process.kill()
        self._process.wait()
        self._to.close()
        self._from.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), is_hasty="hasty" in sys.argv)
