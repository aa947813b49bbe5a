"""Shares free places fairly: each owner gets one due row before any gets a second.

The turn continues from call to call, so that ten owners with long queues and eight places starve
no owner, and a row of an owner without a queue waits for at most one round.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from uuid import UUID

# While fewer rows are due, all of them are read, oldest first; beyond it, each owner's oldest.
WINDOW = 64
# Smaller than every owner: the start of the reads of each owner's rows.
NO_OWNER = UUID(int=0)
# The number of one merchant's look-ups that callers may reschedule at once.
NUDGED_AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class Due:
    """One due row: its owner, and the rest of its key."""

    # A merchant, or a merchant and its endpoint, as text with the database's sort order.
    owner: tuple[str, ...]
    key: str
    # False: it counts for the window, but this process may not lease it.
    is_ours: bool = True


# The oldest rows of all owners, at most this many.
ReadOldest = Callable[[int], Sequence[Due]]
# The oldest rows of the owners after one, in the owners' order; None: from the first owner on.
ReadBehind = Callable[[tuple[str, ...] | None], Sequence[Due]]


class FairShare:
    """Picks rows for free places. One for each loop: it remembers the last owner."""

    def __init__(self) -> None:
        self._last_served: tuple[str, ...] | None = None

    def pick(self, limit: int, read_oldest: ReadOldest, read_behind: ReadBehind) -> list[Due]:
        """Up to `limit` due rows, with at most three bounded reads."""
        oldest = read_oldest(WINDOW)
        rows = [row for row in oldest if row.is_ours]
        if len(oldest) >= WINDOW:
            # Some owner has more rows than this read: read each owner's own rows.
            rows = [*self._in_rotation(limit, read_behind), *rows]
        picked = in_turn(rows, limit)
        if picked:
            self._last_served = picked[-1].owner
        return picked

    def _in_rotation(self, limit: int, read_behind: ReadBehind) -> list[Due]:
        rows = list(read_behind(self._last_served))
        if self._last_served is not None and len({row.owner for row in rows}) < limit:
            rows += read_behind(None)
        return rows


def in_turn(rows: Sequence[Due], limit: int) -> list[Due]:
    """The rows in turns of their owners, in the order of the owners' first rows."""
    waiting: dict[tuple[str, ...], deque[Due]] = {}
    for row in dict.fromkeys(rows):
        waiting.setdefault(row.owner, deque()).append(row)
    picked: list[Due] = []
    while waiting and len(picked) < limit:
        for owner in list(waiting)[: limit - len(picked)]:
            picked.append(waiting[owner].popleft())
            if not waiting[owner]:
                del waiting[owner]
    return picked
