"""A memory page that the processes of one host share; its content ends with the last of them.

Every cell is a double, so that one store replaces it whole: readers need no lock. A process writes
its own slot freely, and the common cells only inside `exclusive()`. A process that finds no other
alive wipes the page first, so no state of an earlier run or another boot remains. If the file
cannot be opened, the page is private memory, and the process shares it with no other.

Create it after the fork: parent and child would otherwise share one slot and one lock.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import mmap
import os
from collections.abc import Iterator
from pathlib import Path
from time import monotonic, sleep

log = logging.getLogger(__name__)

# Identifies this layout; an older release that is still running may use another one.
_LAYOUT = 26112401.0
# Workers, the ops plane and reconcilers of one host, with room for processes being replaced.
SLOTS = 64
_HEADER_CELLS = 16
_SLOT_CELLS = 48
_PAGE_BYTES = 8 * (_HEADER_CELLS + SLOTS * _SLOT_CELLS)

# The lock is held for microseconds; only a stopped process holds it longer, and then every
# waiting process continues without a change.
_LOCK_WAIT_S = 0.05
# Starting processes all wipe and claim at once, and each does it only once.
_CLAIM_WAIT_S = 2.0


class SharedPage:
    """The header's cells are shared by all processes; `own` is the start of this process' slot."""

    def __init__(self, path: Path | None) -> None:
        self._fd: int | None = None
        self._use(mmap.mmap(-1, _PAGE_BYTES))
        self.own = SLOT_STARTS[0]
        if path is None:
            return
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            self._share(self._fd)
        except OSError as error:
            self._leave_file()
            log.warning("breaker.alone", extra={"path": str(path), "error": str(error)})

    def _use(self, page: mmap.mmap) -> None:
        self._page = page
        self.cells: memoryview[float] = memoryview(page).cast("d")

    def _share(self, fd: int) -> None:
        """Map the file and take a free slot; wipe the page first where no live process uses it."""
        with self.exclusive(wait_s=_CLAIM_WAIT_S) as is_mine:
            if not is_mine:
                raise BlockingIOError("its lock is held by a process that does not run")
            if os.fstat(fd).st_size < _PAGE_BYTES:
                # Write all bytes instead of truncating to size: a hole on a full disk would raise SIGBUS.
                os.pwrite(fd, bytes(_PAGE_BYTES), 0)
            self._forget_page()
            self._use(mmap.mmap(fd, _PAGE_BYTES))
            if not self._living():
                self._page[:] = bytes(_PAGE_BYTES)
                self.cells[0] = _LAYOUT
            if self.cells[0] != _LAYOUT:
                raise OSError("another release is using it")
            self.own = self._claim()

    def _claim(self) -> int:
        for start in SLOT_STARTS:
            if not _is_alive(self.cells[start]):
                self._wipe(start)
                self.cells[start] = os.getpid()
                return start
        raise OSError("all its slots are taken")

    def _leave_file(self) -> None:
        self._forget_page()
        self._use(mmap.mmap(-1, _PAGE_BYTES))
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _forget_page(self) -> None:
        self.cells.release()
        self._page.close()

    def _living(self) -> bool:
        return any(_is_alive(self.cells[start]) for start in SLOT_STARTS)

    def _wipe(self, start: int) -> None:
        for cell in range(start, start + _SLOT_CELLS):
            self.cells[cell] = 0.0

    def taken(self) -> Iterator[int]:
        """The starts of all slots in use, this process' included; dead processes may be among them."""
        if self._fd is None:
            return iter((self.own,))
        return (start for start in SLOT_STARTS if self.cells[start])

    @contextlib.contextmanager
    def exclusive(self, *, wait_s: float = _LOCK_WAIT_S) -> Iterator[bool]:
        """Keep other processes from changing the common cells; False: no lock, so change no cell.

        Threads of one process need a second lock around it.
        """
        is_mine = self._lock(wait_s)
        try:
            yield is_mine
        finally:
            if is_mine and self._fd is not None:
                fcntl.flock(self._fd, fcntl.LOCK_UN)

    def _lock(self, wait_s: float) -> bool:
        if self._fd is None:
            return True
        until_s = monotonic() + wait_s
        while True:
            # The kernel releases it when its holder dies, SIGKILL included.
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            except BlockingIOError:
                if monotonic() >= until_s:
                    return False
                sleep(0.001)

    def close(self) -> None:
        """Release the slot; the page cannot be used afterwards."""
        self._wipe(self.own)
        self._forget_page()
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


# Cell 0 is the layout, the rest of the header is the breaker's; a slot starts with a process id.
SLOT_STARTS = tuple(range(_HEADER_CELLS, _HEADER_CELLS + SLOTS * _SLOT_CELLS, _SLOT_CELLS))


def _is_alive(pid: float) -> bool:
    if pid <= 0:
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
