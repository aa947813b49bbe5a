"""The breaker's state, shared by the processes of one host; it ends with the last of them.

A process writes its own slot freely, and the common numbers only inside `exclusive()`. A process that
finds no other alive wipes the page first, so no state of an earlier run or another boot remains. If the
file cannot be opened, the page is private memory, and the process shares it with no other.

Create it after the fork: parent and child would otherwise share one slot and one lock.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

from service.process.shared_page import START_WAIT_S, SharedPage

log = logging.getLogger(__name__)

# Identifies this layout; an older release that is still running may use another one.
_LAYOUT = 26112401.0
# Workers, the ops plane and reconcilers of one host, with room for processes being replaced.
SLOTS = 64
_HEADER, _SLOT = 16, 48
_COUNT = _HEADER + SLOTS * _SLOT
# Number 0 is the layout, the rest of the header is the breaker's; a slot starts with a process id.
SLOT_STARTS = tuple(range(_HEADER, _COUNT, _SLOT))


class SharedState:
    """The header's numbers are shared by all processes; `own` is the start of this process' slot."""

    def __init__(self, path: Path | None) -> None:
        self._page, self.own = SharedPage(None, count=_COUNT), SLOT_STARTS[0]
        if path is not None:
            try:
                self._page, self.own = self._shared(path)
            except OSError as error:
                log.warning("breaker.alone", extra={"path": str(path), "error": str(error)})
        self.numbers = self._page.numbers
        self.exclusive = self._page.exclusive

    @staticmethod
    def _shared(path: Path) -> tuple[SharedPage, int]:
        """The file's page and a free slot of it; wiped first where no live process uses it."""
        page = SharedPage(path, count=_COUNT)
        try:
            with page.exclusive(wait_s=START_WAIT_S) as is_mine:
                if not is_mine:
                    raise BlockingIOError("its lock is held by a process that does not run")
                return page, _claim(page.numbers)
        except OSError:
            page.close()
            raise

    def taken(self) -> Iterator[int]:
        """The starts of all slots in use, this process' included; dead processes may be among them."""
        if not self._page.is_shared:
            return iter((self.own,))
        return (start for start in SLOT_STARTS if self.numbers[start])

    def close(self) -> None:
        """Release the slot; the state cannot be used afterwards."""
        _wipe(self.numbers, self.own, _SLOT)
        self._page.close()


def _claim(numbers: memoryview[float]) -> int:
    """The start of a slot that is now ours."""
    if not any(_is_alive(numbers[start]) for start in SLOT_STARTS):
        _wipe(numbers, 0, _COUNT)
        numbers[0] = _LAYOUT
    if numbers[0] != _LAYOUT:
        raise OSError("another release is using it")
    for start in SLOT_STARTS:
        if not _is_alive(numbers[start]):
            _wipe(numbers, start, _SLOT)
            numbers[start] = os.getpid()
            return start
    raise OSError("all its slots are taken")


def _wipe(numbers: memoryview[float], start: int, count: int) -> None:
    for at in range(start, start + count):
        numbers[at] = 0.0


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
