"""A request rate for each caller, shared by all processes of one host, without a lock.

Each caller has one number: the moment at which its requests so far are paid off at its rate (GCRA,
a token bucket in one cell). It lives in a page of memory shared through a file. Two processes that
change it in the same microsecond may count one request for two, and each thread that has been granted
a request and has not counted it yet may pass one more: a few more pass, and no caller within the rate
is ever refused.
"""

from __future__ import annotations

import hashlib
import logging
import math
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

from service.process.shared_page import SharedPage

log = logging.getLogger(__name__)

# 4096 callers in 64 KiB. One more in a full row takes the cell with the earliest pay-off: only
# that caller's own debt is forgotten.
_ROWS, _CELLS_A_ROW = 1024, 4
_NUMBERS = _ROWS * _CELLS_A_ROW * 2
# Numbers up to 2^53 are exact in a double, and a double is stored whole.
_TAG_BITS = 52


@dataclass(frozen=True, slots=True)
class Allowance:
    """The answer to one request: whether it may pass, and the rest of the burst."""

    is_granted: bool
    burst: int
    remaining: int
    # Seconds until the burst is whole again; and, after a refusal, until the next grant.
    full_in_s: float
    retry_after_s: float
    # Seconds in which a whole burst is paid off.
    window_s: float


class RateLimit:
    """`per_s` requests a second in the long run, `burst` at once, for each name.

    Without a path, or where the file cannot be opened, the process counts alone.
    """

    def __init__(self, path: Path | None, *, per_s: float, burst: int) -> None:
        self._interval_s = 1.0 / per_s
        self._burst = burst
        self._window_s = burst * self._interval_s
        self._page = _page(path)
        self._cells = self._page.numbers

    def take(self, name: str) -> Allowance:
        """Count one request of `name`, if it is granted."""
        now_s = monotonic()
        tag, cell = self._find(name)
        paid_off_s = self._cells[cell + 1] if self._cells[cell] == tag else 0.0
        if paid_off_s - now_s > self._window_s + self._interval_s:
            # Further away than any debt: written before a reboot, or with another setting.
            paid_off_s = 0.0
        owed_s = max(0.0, paid_off_s - now_s)
        is_granted = owed_s + self._interval_s <= self._window_s * (1 + 1e-9)
        if is_granted:
            owed_s += self._interval_s
            self._count(tag, cell, now_s)
        left_s = self._window_s - owed_s
        return Allowance(
            is_granted,
            burst=self._burst,
            remaining=max(0, math.floor(left_s / self._interval_s + 1e-6)),
            full_in_s=owed_s,
            retry_after_s=0.0 if is_granted else self._interval_s - left_s,
            window_s=self._window_s,
        )

    def _count(self, tag: float, cell: int, now_s: float) -> None:
        """Add one request to the debt as it is now, not as `take` found it.

        A thread that stood still in between would write the debt back that it had found, and forget every
        request that was granted meanwhile. No call is between the last look and the write, so no other
        thread of this process runs there, and another process has a fraction of a microsecond.
        """
        cells, interval_s, most_s = self._cells, self._interval_s, now_s + self._window_s
        paid_off_s = cells[cell + 1] if cells[cell] == tag else 0.0
        paid_off_s = (
            paid_off_s if now_s < paid_off_s <= most_s + interval_s else now_s
        ) + interval_s
        cells[cell + 1] = paid_off_s if paid_off_s < most_s else most_s
        cells[cell] = tag

    def has_seen(self, name: str) -> bool:
        """Whether `name` was granted a request here and is still remembered; counts nothing."""
        tag, cell = self._find(name)
        return self._cells[cell] == tag

    def _find(self, name: str) -> tuple[float, int]:
        """The caller's tag and cell; for a new caller, the cell with the earliest pay-off."""
        digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
        number = int.from_bytes(digest) >> (64 - _TAG_BITS)
        tag = float(number or 1)
        row = number % _ROWS * _CELLS_A_ROW * 2
        cells = range(row, row + _CELLS_A_ROW * 2, 2)
        for cell in cells:
            if self._cells[cell] == tag:
                return tag, cell
        return tag, min(cells, key=lambda cell: self._cells[cell + 1])


def _page(path: Path | None) -> SharedPage:
    try:
        return SharedPage(path, count=_NUMBERS)
    except OSError as error:
        log.warning("rate_limit.alone", extra={"path": str(path), "error": str(error)})
        return SharedPage(None, count=_NUMBERS)
