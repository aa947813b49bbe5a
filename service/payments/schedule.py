"""When to look again: the pauses between look-ups of a payment in doubt."""

from __future__ import annotations

import random

_MINUTE, _HOUR, _DAY = 60.0, 3600.0, 86400.0
# Quick while a hiccup is likely, then rarer, in all a little over seven days.
LOOK_UP_PAUSES_S = (
    *(2.0, 10.0, 30.0, 2 * _MINUTE, 10 * _MINUTE, _HOUR, 3 * _HOUR, 8 * _HOUR, 12 * _HOUR),
    *[_DAY] * 6,
)
# Two payments that failed together shall not come back together.
JITTER = 0.2


def next_look_up_s(look_ups: int) -> float:
    """Seconds until the next look-up after `look_ups` of them; the last pause repeats."""
    pause_s = LOOK_UP_PAUSES_S[min(look_ups, len(LOOK_UP_PAUSES_S) - 1)]
    return pause_s * random.uniform(1 - JITTER, 1 + JITTER)  # noqa: S311  # Spread, not secrecy.


def is_exhausted(look_ups: int) -> bool:
    """True once every pause has passed: proof cannot be had this way."""
    return look_ups > len(LOOK_UP_PAUSES_S)
