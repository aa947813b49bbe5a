"""The manager of one program: watches it, ends it and its descendants, and bounds its log.

`ManagedProcess` runs this file as a separate process, isolated and without site-packages: it starts in 20 ms
and has no dependencies, so it imports nothing of the service.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import Any

# Two files of at most this size: enough for the course of a fault, never a full disk.
LOG_BYTES_MAX = 4 * 1024 * 1024
# Descendants that the program leaves get SIGTERM, and SIGKILL after this time.
ORPHANS_GRACE_S = 3.0
# One for the program, one for its descendants; a process that survives both is stuck in the kernel.
KILLS_MAX = 2


def end_with_parent(stop_signal: signal.Signals) -> None:
    """Have the kernel send us `stop_signal` when our parent process has ended (Linux)."""
    _prctl()(_PR_SET_PDEATHSIG, stop_signal)


class _Manager:
    """The manager's whole life: start, watch, end, sweep."""

    def __init__(self, control: socket.socket, order: dict[str, Any]) -> None:
        self._order = order
        self._control = control
        self._log = _BoundedLog(Path(order["log_path"]), echo=order["echo"])
        self._status: int | None = None
        self._kill_at_s: float | None = None
        self._kills = 0

    def run(self) -> int:
        """Watch the program until it and its descendants have ended; its exit status."""
        prctl = _prctl()
        prctl(_PR_SET_CHILD_SUBREAPER, 1)
        wake_fd = _signals_as_bytes()
        output_fd, program_fd = os.pipe()
        os.set_blocking(output_fd, False)
        self._start(program_fd, prctl)
        os.close(program_fd)
        watched = {self._control.fileno(), wake_fd, output_fd}
        while self._reap() and self._kills < KILLS_MAX:
            ready, _, _ = select.select(watched, [], [], self._until_kill_s())
            if output_fd in ready and not self._log.copy(output_fd):
                watched.remove(output_fd)
            asked_to_end = wake_fd in ready and set(os.read(wake_fd, 512)) - {signal.SIGCHLD}
            if self._control.fileno() in ready or asked_to_end:
                watched.discard(self._control.fileno())
                self._end()
            if self._until_kill_s() == 0:
                self._kill()
        self._log.copy(output_fd)
        return self._status or 0

    def _start(self, program_fd: int, prctl: Callable[[int, int], int]) -> None:
        manager_pid = os.getpid()
        stop_signal = self._order["stop_signal"]
        uid, gid = self._order["uid_gid"] or (None, None)

        def die_with_manager() -> None:
            # Set after the change of user, which would clear it.
            prctl(_PR_SET_PDEATHSIG, stop_signal)
            if os.getppid() != manager_pid:
                os._exit(1)

        try:
            program = subprocess.Popen(
                self._order["command"],
                stdin=subprocess.DEVNULL,
                stdout=program_fd,
                stderr=program_fd,
                pass_fds=self._order["inherited_fds"],
                user=uid,
                group=gid,
                extra_groups=None if uid is None else [],
                start_new_session=True,
                preexec_fn=die_with_manager,  # The manager has one thread.
            )
        except OSError as error:
            self._log.write(f"{self._order['command'][0]}: {error.strerror}\n".encode())
            sys.exit(127)
        self._pid = program.pid
        program.returncode = 0  # Reaped below, with the orphans; not by Popen.
        for inherited_fd in self._order["inherited_fds"]:
            os.close(inherited_fd)
        # The parent may have ended already; the closed socket then shows it.
        with contextlib.suppress(OSError):
            self._control.send(str(program.pid).encode())

    def _reap(self) -> bool:
        """Reap dead children; True while any descendant of the program is alive."""
        while True:
            try:
                pid, wait_status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return self._signal_group(0)
            if pid == 0:
                return True
            if pid == self._pid:
                self._status = os.waitstatus_to_exitcode(wait_status)
                # Its descendants would keep its ports and its connections.
                self._signal_group(signal.SIGTERM)
                self._kill_at_s = monotonic() + ORPHANS_GRACE_S

    def _end(self) -> None:
        if self._status is None and self._kill_at_s is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, self._order["stop_signal"])
            self._kill_at_s = monotonic() + self._order["grace_s"]

    def _kill(self) -> None:
        self._signal_group(signal.SIGKILL)
        self._kills += 1
        self._kill_at_s = monotonic() + ORPHANS_GRACE_S

    def _until_kill_s(self) -> float | None:
        return None if self._kill_at_s is None else max(0.0, self._kill_at_s - monotonic())

    def _signal_group(self, number: int) -> bool:
        try:
            os.killpg(self._pid, number)
        except OSError:
            return False
        return True


class _BoundedLog:
    """Appends to one file, and renames it to `.1` when it is large."""

    def __init__(self, path: Path, *, echo: bool) -> None:
        self._path = path
        self._echo = echo
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab", buffering=0)

    def copy(self, output_fd: int) -> bool:
        """Copy pending output to the file; False at its end."""
        while True:
            try:
                text = os.read(output_fd, 65536)
            except BlockingIOError:
                return True
            if not text:
                return False
            self.write(text)

    def write(self, text: bytes) -> None:
        # A full disk must not end the program.
        with contextlib.suppress(OSError):
            if self._file.tell() > LOG_BYTES_MAX:
                self._file.close()
                self._path.replace(f"{self._path}.1")
                self._file = self._path.open("ab", buffering=0)
            self._file.write(text)
        if self._echo:
            try:
                os.write(1, text)
            except OSError:
                self._echo = False  # The terminal is gone.


def _signals_as_bytes() -> int:
    """A descriptor that yields one byte for each signal to the manager."""
    read_fd, write_fd = os.pipe()
    os.set_blocking(read_fd, False)
    os.set_blocking(write_fd, False)
    signal.set_wakeup_fd(write_fd, warn_on_full_buffer=False)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
    return read_fd


_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def _prctl() -> Callable[[int, int], int]:
    """Linux's prctl; elsewhere a call without effect, where only the socket ends the program."""
    if not sys.platform.startswith("linux"):
        return lambda option, value: 0
    function = ctypes.CDLL(None, use_errno=True).prctl
    return lambda option, value: int(function(option, value, 0, 0, 0))


def main() -> int:
    """Run the manager of the program that the parent names through the socket."""
    control = socket.socket(fileno=int(sys.argv[1]))
    order = b""
    while not order.endswith(b"\n"):
        piece = control.recv(65536)
        if not piece:
            return 0  # The parent ended before it sent the order.
        order += piece
    status = _Manager(control, json.loads(order)).run()
    # A signal's -N would become 256 - N; shells report 128 + N.
    return 128 - status if status < 0 else status


if __name__ == "__main__":
    os._exit(main())
