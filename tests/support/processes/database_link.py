"""A link to PostgreSQL that a test can stall or cut: a relay between two unix sockets."""

from __future__ import annotations

import contextlib
import shutil
import socket
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

from psycopg2.extensions import make_dsn, parse_dsn


class DatabaseLink:
    """`url` leads to the database of the given URL through this link; close it at the end."""

    def __init__(self, url: str) -> None:
        target = parse_dsn(url)
        self._name = f".s.PGSQL.{target.get('port', '5432')}"
        self._target = Path(target["host"]) / self._name
        self._directory = Path(tempfile.mkdtemp(prefix="link-"))
        self.url = make_dsn(url, host=str(self._directory))
        self._flows = threading.Event()
        self._flows.set()
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._listener: socket.socket | None = None
        self.restore()

    def stall(self) -> None:
        """Read bytes and forward none; new connections are accepted and stay silent."""
        self._flows.clear()

    def cut(self) -> None:
        """Break every connection and refuse new ones."""
        self._flows.set()
        if self._listener is not None:
            (self._directory / self._name).unlink()
            _shut(self._listener)
            self._listener = None
            # A connection that it still accepts must be cut too.
            self._threads.pop(0).join()
        for end in list(self._sockets):
            _shut(end)
        for thread in self._threads:
            thread.join()
        self._sockets, self._threads = [], []

    def lose(self) -> None:
        """Cut the link, and drop the stalled bytes."""
        for end in list(self._sockets):
            _shut(end)
        self.cut()

    def restore(self) -> None:
        """Forward all bytes again."""
        self._flows.set()
        if self._listener is None:
            self._listener = socket.socket(socket.AF_UNIX)
            self._listener.bind(str(self._directory / self._name))
            self._listener.listen()
            self._start(self._accept, self._listener)

    def open_to_all_users(self) -> None:
        """Let programs of other users connect."""
        self._directory.chmod(0o711)
        (self._directory / self._name).chmod(0o777)

    def close(self) -> None:
        """Break all connections and remove the socket."""
        self.cut()
        shutil.rmtree(self._directory)

    def _start(self, target: Callable[..., None], *arguments: socket.socket) -> None:
        thread = threading.Thread(target=target, args=arguments)
        self._threads.append(thread)
        thread.start()

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError), listener:
            while True:
                near, _ = listener.accept()
                far = socket.socket(socket.AF_UNIX)
                self._sockets += [near, far]
                far.connect(str(self._target))
                self._start(self._relay, near, far)
                self._start(self._relay, far, near)

    def _relay(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while chunk := source.recv(65536):
                self._flows.wait()
                sink.sendall(chunk)
        _shut(source)
        _shut(sink)
        source.close()


def _shut(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
