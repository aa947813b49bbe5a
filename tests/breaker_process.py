"""A process with a breaker of its own, told by lines on standard input what to do.

`python -m tests.breaker_process BOARD`. Commands: `fail N`, `state`, `probe` (leases a probe and
says nothing about it), `good` (the probe went well).
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import IO, cast

from service.resilience.breaker import Breaker, BreakerOpen, Permit


def main(board_path: Path) -> None:
    breaker = Breaker("fake", board_path=board_path)
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
            case ["good"] if probe is not None:
                probe.record(failed=False)
                print(breaker.state, flush=True)


class BreakerProcess:
    """The same from outside."""

    def __init__(self, board_path: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.breaker_process", str(board_path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._to = cast("IO[str]", self._process.stdin)
        self._from = cast("IO[str]", self._process.stdout)

    def wait_until_ready(self) -> None:
        assert self._from.readline().strip() == "ready"

    def ask(self, command: str) -> str:
        self._to.write(command + "\n")
        self._to.flush()
        return self._from.readline().strip()

    def kill(self) -> None:
        """SIGKILL: it can tidy nothing up."""
        self._process.kill()
        self._process.wait()
        self._to.close()
        self._from.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
