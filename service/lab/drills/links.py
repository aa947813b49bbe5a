"""Puts the fault proxy on one instance's links: its listeners, its command line, the changed URLs."""

from __future__ import annotations

import shutil
import socket
import sys
import tempfile
from pathlib import Path
from urllib.parse import urlsplit

from service.database.address import address_of, by_way_of
from service.lab.faultproxy.proxy import DATABASE, PROVIDER, listener_at

# The kernel takes 107 bytes for a socket's path; PostgreSQL's name of one has 22.
DIRECTORY_BYTES_MAX = 80


class FaultLinks:
    """The links as their users see them. This object owns the listeners, so a proxy can be replaced."""

    def __init__(self, directory: Path, *, provider_url: str, database_url: str) -> None:
        """`directory` is emptied; no other process may use it."""
        shutil.rmtree(directory, ignore_errors=True)
        if len(str(directory).encode()) > DIRECTORY_BYTES_MAX:
            directory = Path(tempfile.mkdtemp(prefix="holdfast-links-"))
        # A process that can open these sockets can speak to the database with our rights.
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._directory = directory
        self.control_path = directory / "control"
        self._listeners: list[socket.socket] = []
        self._options = ["--control", str(self.control_path)]
        self.provider_proxy_url = self._lead_provider(provider_url)
        self.database_url = self._lead_database(database_url)

    @property
    def command(self) -> list[str]:
        return [sys.executable, "-m", "service", "faultproxy", *self._options]

    @property
    def filenos(self) -> list[int]:
        """The file descriptors that the proxy must inherit."""
        return [listener.fileno() for listener in self._listeners]

    def close(self) -> None:
        """Close the listeners and remove the sockets' directory."""
        for listener in self._listeners:
            listener.close()
        shutil.rmtree(self._directory, ignore_errors=True)

    def _lead_provider(self, url: str) -> str:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port or 443
        listener = listener_at(("127.0.0.1", 0))
        self._add(PROVIDER, listener, f"{host}:{port}")
        return f"http://127.0.0.1:{listener.getsockname()[1]}"

    def _lead_database(self, url: str) -> str:
        """A DSN with several hosts cannot be relayed as one link: they are connected directly."""
        target = address_of(url)
        if target is None:
            return url
        if isinstance(target, str):
            # A unix socket, not TCP: every user of this machine could connect to a TCP port.
            address = str(self._directory / Path(target).name)
            self._add(DATABASE, listener_at(address), target)
            return by_way_of(url, address)
        listener = listener_at(("127.0.0.1", 0))
        self._add(DATABASE, listener, f"{target[0]}:{target[1]}")
        return by_way_of(url, ("127.0.0.1", listener.getsockname()[1]))

    def _add(self, name: str, listener: socket.socket, target: str) -> None:
        self._listeners.append(listener)
        self._options += [
            *(f"--{name}-listen", f"fd:{listener.fileno()}"),
            *(f"--{name}-target", target),
        ]
