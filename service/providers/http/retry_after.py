"""Reads a Retry-After header: a number of seconds or a date (RFC 9110, section 10.2.3)."""

from __future__ import annotations

import re
from email.utils import parsedate_to_datetime

_SECONDS = re.compile(r"[0-9]{1,9}")
# "Sun, 06 Nov 1994 08:49:37 GMT" and the two obsolete forms are shorter.
_LONGEST_DATE = 40


def parse_retry_after_s(header: str | None, *, now_s: float, longest_s: float) -> float | None:
    """The requested wait, from 0 to `longest_s`; None where the header is missing or invalid."""
    text = (header or "").strip()
    if _SECONDS.fullmatch(text):
        return min(float(text), longest_s)
    if not text or len(text) > _LONGEST_DATE:
        return None
    try:
        moment_s = parsedate_to_datetime(text).timestamp()
    except (ValueError, OverflowError, TypeError, IndexError):
        return None
    return min(max(0.0, moment_s - now_s), longest_s)
