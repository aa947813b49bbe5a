"""A memory page of numbers that the processes of one host share through a file.

Every number is a double, so that one store replaces it whole: readers need no lock, and a process
that is killed never leaves half a number. A change that depends on what it read belongs in `exclusive`.
"""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

from service.process.file_lock import lock_fileno, unlock_fileno

# The lock is held for microseconds; only a stopped process holds it longer, and then every
# waiting process continues without a change.
_LOCK_WAIT_S = 0.05
# Starting processes all create and claim at once, and each does it only once.
START_WAIT_S = 2.0


class SharedPage:
    """`count` numbers. Without a path, only children that are forked later share them.

    Raises OSError where the file cannot be opened, filled or locked. A file that exists keeps its numbers.
    """

    def __init__(self, path: Path | None, *, count: int) -> None:
        self._fileno: int | None = None
        if path is None:
            self._memory = mmap.mmap(-1, 8 * count)
        else:
            self._fileno = os.open(
                path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
            )
            try:
                self._fill(self._fileno, 8 * count)
                self._memory = mmap.mmap(self._fileno, 8 * count)
            except BaseException:
                os.close(self._fileno)
                raise
        self.numbers: memoryview[float] = memoryview(self._memory).cast("d")

    @property
    def is_shared(self) -> bool:
        """Whether other processes may have the same page."""
        return self._fileno is not None

    @contextlib.contextmanager
    def exclusive(self, *, wait_s: float = _LOCK_WAIT_S) -> Iterator[bool]:
        """Keep other processes out of their own `exclusive`; False: no lock, so change no number.

        Threads of one process need a second lock around it.
        """
        is_mine = self._fileno is None or lock_fileno(self._fileno, wait_s=wait_s)
        try:
            yield is_mine
        finally:
            if is_mine and self._fileno is not None:
                unlock_fileno(self._fileno)

    def close(self) -> None:
        """The page cannot be used afterwards."""
        self.numbers.release()
        self._memory.close()
        if self._fileno is not None:
            os.close(self._fileno)
            self._fileno = None

    def _fill(self, fileno: int, size: int) -> None:
        """Write zeros to a new file; under the lock, or they would replace another's numbers."""
        if os.fstat(fileno).st_size >= size:
            return
        with self.exclusive(wait_s=START_WAIT_S) as is_mine:
            if not is_mine:
                raise BlockingIOError("its lock is held by a process that does not run")
            if os.fstat(fileno).st_size < size:
                # Write all bytes instead of truncating to size: a hole on a full disk would raise SIGBUS.
                os.pwrite(fileno, bytes(size), 0)
