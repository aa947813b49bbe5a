"""The fault proxy in a test: a process on the links to a sandbox and a database."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from psycopg2.extensions import make_dsn, parse_dsn

from service.lab.faultproxy.client import FaultClient, ProxyGone
from service.lab.faultproxy.proxy import listener_at
from tests.support.stack.running_stack import ROOT, wait_for


class FaultProxyProcess:
    """A running fault proxy; its listeners stay open after `kill`, as in a local stack."""

    def __init__(self, *, provider_url: str, database_url: str) -> None:
        # Short: the kernel accepts at most 107 bytes for a socket's path.
        self._directory = Path(tempfile.mkdtemp(prefix="faults-"))
        self.control_path = self._directory / "control"
        self._log_path = self._directory / "log"
        target = urlsplit(provider_url)
        database = parse_dsn(database_url)
        name = f".s.PGSQL.{database.get('port', '5432')}"
        self._listeners = [
            listener_at(("127.0.0.1", 0)),
            listener_at(str(self._directory / name)),
        ]
        provider, data = self._listeners
        self.proxy_url = f"http://127.0.0.1:{provider.getsockname()[1]}"
        self.database_url = make_dsn(database_url, host=str(self._directory))
        self._options = [
            *("--control", str(self.control_path)),
            *("--provider-listen", f"fd:{provider.fileno()}"),
            *("--provider-target", f"{target.hostname}:{target.port}"),
            *("--database-listen", f"fd:{data.fileno()}"),
            *("--database-target", str(Path(database["host"]) / name)),
        ]
        self.start()

    def start(self) -> None:
        """Start it (again, on the same listeners) and wait until it accepts commands."""
        with self._log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "service", "faultproxy", *self._options],
                cwd=ROOT,
                pass_fds=[listener.fileno() for listener in self._listeners],
                stdout=log,
            )
        wait_for(self._takes_orders)

    def kill(self) -> None:
        """kill -9."""
        self.process.kill()
        self.process.wait(60)

    def holder(self) -> FaultClient:
        return FaultClient(self.control_path)

    def mode(self, link: str) -> str | None:
        """The fault that is on a link."""
        with self.holder() as onlooker:
            mode: str | None = onlooker.describe()[link]["mode"]
            return mode

    def cleared_because(self) -> str | None:
        """The reason for the end of the last fault, from its log."""
        events = [json.loads(line) for line in self._log_path.read_text().splitlines()]
        reasons = [event["why"] for event in events if event["event"] == "faultproxy.cleared"]
        return reasons[-1] if reasons else None

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
        self.process.wait(60)
        for listener in self._listeners:
            listener.close()
        shutil.rmtree(self._directory, ignore_errors=True)

    def _takes_orders(self) -> bool:
        try:
            self.holder().close()
        except ProxyGone:
            return False
        return True

    def say(self, line: bytes) -> socket.socket:
        """A connection to the control socket after it has sent only `line`."""
        control = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        control.connect(str(self.control_path))
        control.sendall(line)
        return control


@contextmanager
def running_fault_proxy(*, provider_url: str, database_url: str) -> Iterator[FaultProxyProcess]:
    """A fault proxy in front of both; stopped at the end."""
    proxy = FaultProxyProcess(provider_url=provider_url, database_url=database_url)
    try:
        yield proxy
    finally:
        proxy.stop()
