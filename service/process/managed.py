"""Runs one program that cannot outlive its parent, however the parent ends.

`ManagedProcess` starts `manager.py` as a small separate process, the manager, and the program as the manager's
child. A socket pair joins parent and manager: when the parent's end closes, by `stop` or because the
parent was killed, the manager ends the program and all its descendants. When the manager itself is
killed, the kernel ends the program (Linux). The manager also bounds its log.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from service.process.manager import ORPHANS_GRACE_S

MANAGER = Path(__file__).with_name("manager.py")
# After the grace periods of the program and its descendants the manager itself must be broken.
MANAGER_MARGIN_S = 5.0


class ManagedProcess:
    """A managed process: it ends with `stop`, or with this process, whichever is first."""

    def __init__(
        self,
        command: Sequence[str | Path],
        *,
        log_path: Path,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        stop_signal: signal.Signals = signal.SIGTERM,
        grace_s: float = 10.0,
        uid_gid: tuple[int, int] | None = None,
        outlived_by: Iterable[ManagedProcess] = (),
        inherited_fds: Sequence[int] = (),
        echo: bool = False,
    ) -> None:
        """Start it; the programs in `outlived_by` stay until this one has ended, even after a kill.

        `inherited_fds` stay open in the program, `echo` copies its log to our standard output.
        """
        self.command = [str(word) for word in command]
        self.log_path = log_path
        self.grace_s = grace_s
        self._pid: int | None = None
        self._log_start = log_path.stat().st_size if log_path.exists() else 0
        self._control, theirs = socket.socketpair()
        order = {
            "command": self.command,
            "log_path": str(log_path.absolute()),
            "inherited_fds": list(inherited_fds),
            "stop_signal": int(stop_signal),
            "grace_s": grace_s,
            "uid_gid": uid_gid,
            "echo": echo,
        }
        held_fds = [kept._control.fileno() for kept in outlived_by]
        with theirs:
            self._manager = _start_manager(
                theirs.fileno(),
                name=log_path.stem,
                env=None if env is None else dict(env),
                cwd=cwd,
                fds=[*inherited_fds, *held_fds],
                echo=echo,
            )
        # Not on its command line, which every user of the machine can read.
        self._control.sendall(json.dumps(order).encode() + b"\n")

    @property
    def pid(self) -> int:
        """The program's process id (the manager's when the program could not be started)."""
        if self._pid is None:
            self._pid = int(self._control.recv(32) or self._manager.pid)
        return self._pid

    @property
    def manager_pid(self) -> int:
        return self._manager.pid

    def fileno(self) -> int:
        """For `select`: readable, once `pid` was read, when the program has ended."""
        return self._control.fileno()

    def poll(self) -> int | None:
        """The program's exit status, 128 + N for signal N; None while it runs."""
        return self._manager.poll()

    def wait(self, timeout_s: float) -> int | None:
        """Like `poll`, after waiting at most `timeout_s`."""
        try:
            return self._manager.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None

    def release(self) -> None:
        """Ask it to end, without waiting."""
        self._control.close()

    def stop(self) -> int:
        """End it and all its descendants within the grace; its exit status. A second call does nothing."""
        self.release()
        status = self.wait(self.grace_s + ORPHANS_GRACE_S + MANAGER_MARGIN_S)
        if status is None:
            self._manager.kill()
            status = self._manager.wait()
        return status

    def lines(self) -> list[str]:
        """Its output since this start, or the last part of a long output."""
        try:
            with self.log_path.open("rb") as log:
                size = log.seek(0, os.SEEK_END)
                # The file is smaller than at the start: it was rotated in between.
                start = self._log_start if self._log_start <= size else 0
                log.seek(max(start, size - 65536))
                return log.read().decode(errors="replace").splitlines()
        except OSError:
            return []


def _start_manager(
    control_fd: int,
    *,
    name: str,
    env: dict[str, str] | None,
    cwd: Path | None,
    fds: Sequence[int],
    echo: bool,
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        # Isolated and without site-packages: it starts in 20 ms and has no dependencies.
        [sys.executable, "-I", "-S", str(MANAGER), str(control_fd), name],
        stdin=subprocess.DEVNULL,
        stdout=None if echo else subprocess.DEVNULL,
        env=env,
        cwd=cwd,
        pass_fds=[control_fd, *fds],
        # Ctrl-C in a terminal reaches only the parent, which stops all parts in order.
        start_new_session=True,
    )
