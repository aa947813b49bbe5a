"""`python -m service observe` in a test, with separate ports and a separate home."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.stack.running_stack import ROOT, free_port, wait_for

# As small and quick as in the test of the dashboards: seconds in place of the real minutes.
SMALL = {
    "HOLDFAST_PROVIDER_TIMEOUT_MS": "1000",
    "HOLDFAST_PROVIDER_CONNECT_TIMEOUT_MS": "500",
    "HOLDFAST_DB_POOL_SIZE": "4",
    "HOLDFAST_WEB_THREADS": "12",
}


@dataclass(frozen=True, slots=True)
class Show:
    """A running `observe`, and its output."""

    process: subprocess.Popen[bytes]
    home: Path
    out: Path

    def said(self) -> str:
        return self.out.read_text()

    def wait_until_said(self, words: str, *, timeout_s: float) -> str:
        wait_for(
            lambda: words in self.said() or self.process.poll() is not None, timeout_s=timeout_s
        )
        assert words in self.said(), self.said()
        return self.said()

    def url(self, name: str) -> str:
        match = re.search(rf"^ +{name} +(http://[^/ ]+)", self.said(), re.MULTILINE)
        assert match, self.said()
        return match[1]


@contextmanager
def show(*arguments: str, **environ: str) -> Iterator[Show]:
    directory = Path(tempfile.mkdtemp(prefix="holdfast-test-"))
    # As root, PostgreSQL runs as another user.
    directory.chmod(0o711)
    home, out = directory / "home", directory / "out"
    addresses = {
        "HOLDFAST_BIND": f"127.0.0.1:{free_port()}",
        "HOLDFAST_OPS_BIND": f"127.0.0.1:{free_port()}",
    }
    with out.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "service", "observe", "--end-with-parent", *arguments],
            cwd=ROOT,
            env={**os.environ, **SMALL, **addresses, "HOLDFAST_HOME": str(home), **environ},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        yield Show(process, home, out)
    finally:
        if process.poll() is None:
            process.terminate()
        process.wait(60)
        shutil.rmtree(directory)
