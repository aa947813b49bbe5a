"""A number of calls a second, so that work without urgency leaves the provider to the rest."""

from __future__ import annotations

from time import monotonic


class CallBudget:
    """`per_s` calls a second in the long run, `burst` at once. For one thread of one process."""

    def __init__(self, *, per_s: float, burst: int) -> None:
        self._per_s = per_s
        self._burst = burst
        self._left = float(burst)
        self._counted_s = monotonic()

    def left(self) -> int:
        """The number of calls that may be made now."""
        now_s = monotonic()
        self._left = min(self._burst, self._left + (now_s - self._counted_s) * self._per_s)
        self._counted_s = now_s
        return int(self._left)

    def spend(self, calls: int) -> None:
        """Count calls that were made."""
        self._left -= calls
