"""The pauses between look-ups of a payment in doubt."""

from __future__ import annotations

import random
from bisect import bisect_right
from itertools import accumulate

_MINUTE, _HOUR, _DAY = 60.0, 3600.0, 86400.0
# Short while a brief fault is likely, then longer; together a little over seven days.
LOOK_UP_PAUSES_S = (
    *(2.0, 10.0, 30.0, 2 * _MINUTE, 10 * _MINUTE, _HOUR, 3 * _HOUR, 8 * _HOUR, 12 * _HOUR),
    *[_DAY] * 6,
)
# Jitter: two payments that failed together must not be looked up together.
JITTER = 0.2
# The earliest age at which each pause has passed.
_PASSED_S = tuple(age_s * (1 - JITTER) for age_s in accumulate(LOOK_UP_PAUSES_S))
PATIENCE_S = _PASSED_S[-1]


def next_look_up_s(doubt_age_s: float | None) -> float:
    """Seconds until the next look-up of a doubt of that age; the last pause repeats.

    By its age, not by the number of look-ups: look-ups caused by callers and webhooks must not make
    the next ones rarer.
    """
    passed = bisect_right(_PASSED_S, doubt_age_s or 0.0)
    pause_s = LOOK_UP_PAUSES_S[min(passed, len(LOOK_UP_PAUSES_S) - 1)]
    return pause_s * random.uniform(1 - JITTER, 1 + JITTER)  # noqa: S311  # Spread, not secrecy.


def is_exhausted(look_ups: int, doubt_age_s: float | None) -> bool:
    """True after every pause has passed and was used: look-ups cannot find a proof.

    Both are required: many look-ups in a minute prove nothing, and neither does a week without any.
    """
    return look_ups > len(LOOK_UP_PAUSES_S) and (doubt_age_s or 0.0) > PATIENCE_S
