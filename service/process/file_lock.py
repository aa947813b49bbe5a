"""Locks of files between the processes of one machine.

The kernel releases a lock when its last descriptor is closed, also by SIGKILL: a child process that
inherits the descriptor keeps the lock for its own life too. Descriptors are not inherited by default.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from pathlib import Path
from time import monotonic, sleep

_FIRST_PAUSE_S, _PAUSE_MAX_S = 0.001, 0.05


def file_lock(
    path: Path, *, wait_s: float = 0.0, may_wait: Callable[[], bool] = lambda: True
) -> int | None:
    """Open the file, create it if needed, and lock it: the descriptor, to be closed by the caller.

    None while another process holds it, after `wait_s` or as soon as `may_wait` is False.
    """
    fileno = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        is_mine = lock_fileno(fileno, wait_s=wait_s, may_wait=may_wait)
    except BaseException:
        os.close(fileno)
        raise
    if is_mine:
        return fileno
    os.close(fileno)
    return None


def lock_fileno(fileno: int, *, wait_s: float, may_wait: Callable[[], bool] = lambda: True) -> bool:
    """Lock an open file or directory within `wait_s`; False while another process holds it.

    Threads that share the descriptor share the lock: they need a second one around it.
    """
    give_up_at_s = monotonic() + wait_s
    pause_s = _FIRST_PAUSE_S
    while True:
        try:
            fcntl.flock(fileno, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if monotonic() >= give_up_at_s or not may_wait():
                return False
            sleep(pause_s)
            pause_s = min(2 * pause_s, _PAUSE_MAX_S)


def unlock_fileno(fileno: int) -> None:
    fcntl.flock(fileno, fcntl.LOCK_UN)


def is_locked(path: Path) -> bool:
    """Whether a process holds the lock of this file; two who ask do not see each other."""
    fileno = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.flock(fileno, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fileno)
    return False
