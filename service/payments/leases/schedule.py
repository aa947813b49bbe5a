"""When to look again: the pauses between look-ups of what is in doubt."""

from __future__ import annotations

import random
from bisect import bisect_right
from itertools import accumulate

_MINUTE, _HOUR, _DAY = 60.0, 3600.0, 86400.0
# Quick while a hiccup is likely, then rarer, in all a little over seven days.
LOOK_UP_PAUSES_S = (
    *(2.0, 10.0, 30.0, 2 * _MINUTE, 10 * _MINUTE, _HOUR, 3 * _HOUR, 8 * _HOUR, 12 * _HOUR),
    *[_DAY] * 6,
)
# Two payments that failed together shall not come back together.
JITTER = 0.2
# The age at which each pause has passed, at the earliest.
_PASSED_S = tuple(age_s * (1 - JITTER) for age_s in accumulate(LOOK_UP_PAUSES_S))
PATIENCE_S = _PASSED_S[-1]


def next_look_up_s(doubt_age_s: float | None) -> float:
    """Seconds until the next look-up of a doubt of that age; the last pause repeats.

    By its age, not by the look-ups made: those that callers and webhooks bring forward must not
    make the next ones rarer.
    """
    passed = bisect_right(_PASSED_S, doubt_age_s or 0.0)
    pause_s = LOOK_UP_PAUSES_S[min(passed, len(LOOK_UP_PAUSES_S) - 1)]
    return pause_s * random.uniform(1 - JITTER, 1 + JITTER)  # noqa: S311  # Spread, not secrecy.


def is_exhausted(look_ups: int, doubt_age_s: float | None) -> bool:
    """True once every pause has passed and was used: proof cannot be had this way.

    Both, for many look-ups in a minute are no patience, and neither is a week without any.
    """
    return look_ups > len(LOOK_UP_PAUSES_S) and (doubt_age_s or 0.0) > PATIENCE_S
