"""Free places shared out in turn: to each owner one row that is due, before any gets a second.

The turn goes on from call to call, so that ten owners with long queues and eight places starve
nobody, and a row of an owner without a queue waits for a round at most.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from uuid import UUID

# As long as fewer rows are due, all of them are read, oldest first; beyond, each owner's oldest.
WINDOW = 64
# Less than every owner: where the reads of each owner's rows begin.
NO_OWNER = UUID(int=0)
# Look-ups of one merchant that callers may bring forward: those that wait are asked for first.
NUDGED_AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class Due:
    """One row that is due: who it belongs to, and the rest of its key."""

    # A merchant, or a merchant and its endpoint, as text that sorts as the database does.
    owner: tuple[str, ...]
    key: str
    # False: it counts for the window, but this process may not take it.
    is_ours: bool = True


# The oldest rows of all owners, at most so many.
ReadOldest = Callable[[int], Sequence[Due]]
# The oldest rows of the owners behind one, in the owners' order; None: from the first owner on.
ReadBehind = Callable[[tuple[str, ...] | None], Sequence[Due]]


class FairShare:
    """Picks rows for free places. One for each loop: it remembers whose turn it is."""

    def __init__(self) -> None:
        self._last_served: tuple[str, ...] | None = None

    def pick(self, limit: int, read_oldest: ReadOldest, read_behind: ReadBehind) -> list[Due]:
        """Up to `limit` rows that are due. Three reads of a bounded size at most."""
        oldest = read_oldest(WINDOW)
        rows = [row for row in oldest if row.is_ours]
        if len(oldest) >= WINDOW:
            # Some owner has more than is read here: ask for each owner's own rows.
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
    """The rows by turns of their owners, in the order in which the owners first come."""
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
