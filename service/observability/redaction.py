"""Takes secrets and card numbers out of what is about to be written for people to read."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any
from urllib.parse import quote

REDACTED = "[redacted]"

# Long enough for a chained traceback; a longer string would be cut by what collects the logs.
STRING_LIMIT = 16_384
ITEMS_LIMIT = 64
DEPTH_LIMIT = 6
# A shorter "secret" would take ordinary words out of every line.
SECRET_MIN_LENGTH = 6

# Whatever stands under these names is a secret, whatever it looks like.
_SECRET_NAMES = re.compile(
    r"authorization|cookie|password|passwd|secret|api_?key$|token|stripe.signature|card_?number|cvc|cvv",
    re.IGNORECASE,
)

# One pattern, so that a string without secrets is read once. What group `keep` matches stays.
_SECRETS = (
    r"(?P<keep>(?:sk|rk|hf)_(?:live|test)_|whsec_|_secret_|(?:bearer|basic)\s+)"
    r"[\w+/=.~-]{4,}",
    r"(?P<keep_auth>authorization['\"]?\s*[:=]\s*['\"]?)[^\s'\",;]+",
    r"(?P<keep_url>\w://[^\s:/@]*:)[^\s@/]+(?=@)",
    r"(?P<keep_word>\b(?:password|passwd|pgpassword)['\"]?\s*[:=]\s*['\"]?)[^\s'\",;&]+",
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)",
)
# Our ids are 32 hexadecimal digits and hold long runs of decimal ones by chance: they stay.
_DIGITS = re.compile(
    r"(?P<id>(?<![0-9a-f])(?:[0-9a-f]{32}|[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})(?![0-9a-f]))"
    r"|\d(?:[ \t\u00a0_.-]?\d){12,}"
)
_DIGIT_GROUP = re.compile(r"\d+")
_CARD_LENGTHS = range(13, 20)

_registered: set[str] = set()
_pattern = re.compile("|".join(_SECRETS), re.IGNORECASE | re.DOTALL)


def redact(secrets: Iterable[str | None]) -> None:
    """Hide these very values from now on, also where they appear quoted; None and short are skipped."""
    global _pattern
    for secret in secrets:
        if secret and len(secret) >= SECRET_MIN_LENGTH:
            _registered.update({secret, quote(secret, safe=""), repr(secret)[1:-1]})
    # The longest first: one secret may begin with another.
    literal = [re.escape(value) for value in sorted(_registered, key=len, reverse=True)]
    _pattern = re.compile("|".join([*literal, *_SECRETS]), re.IGNORECASE | re.DOTALL)


def clean(value: Any, *, name: str = "", depth: int = 0) -> Any:
    """The value as JSON may hold it, bounded, without secrets and card numbers."""
    if value is None or isinstance(value, bool):
        return value
    if name and _names_a_secret(name):
        return REDACTED
    if type(value) is str:
        return clean_text(value)
    if isinstance(value, int):
        return REDACTED if looks_like_card(str(int(value))) else int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(value)
    if isinstance(value, Mapping) and depth < DEPTH_LIMIT:
        pairs = list(value.items())[:ITEMS_LIMIT]
        return {
            clean_text(str(key)): clean(item, name=str(key), depth=depth + 1) for key, item in pairs
        }
    if isinstance(value, list | tuple | set | frozenset) and depth < DEPTH_LIMIT:
        return [clean(item, depth=depth + 1) for item in list(value)[:ITEMS_LIMIT]]
    return clean_text(str(value))


def clean_text(text: str) -> str:
    """The text without secrets and card numbers, cut where it gets too long."""
    if len(text) < SECRET_MIN_LENGTH:
        return text
    # Cut at twice the limit first, so that a secret across the final cut is still seen whole.
    text = text[: 2 * STRING_LIMIT]
    text = _pattern.sub(_hide_secret, text)
    if len(text) >= _CARD_LENGTHS[0]:
        text = _DIGITS.sub(_hide_card, text)
    return text if len(text) <= STRING_LIMIT else text[:STRING_LIMIT] + "…"


def looks_like_card(digits: str) -> bool:
    """Whether the digits have a card number's length and pass Luhn's check."""
    if len(digits) not in _CARD_LENGTHS or not digits.isdecimal():
        return False
    total = 0
    for place, digit in enumerate(reversed(digits)):
        number = int(digit) * (1 + place % 2)
        total += number - 9 if number > 9 else number
    return total % 10 == 0


@lru_cache(maxsize=1024)
def _names_a_secret(name: str) -> bool:
    return _SECRET_NAMES.search(name) is not None


def _hide_secret(match: re.Match[str]) -> str:
    kept = next((group for group in match.groups() if group), "")
    return kept + REDACTED


def _hide_card(match: re.Match[str]) -> str:
    """Hide the run when some of its neighbouring groups of digits together are a card number."""
    if match["id"]:
        return match[0]
    groups = _DIGIT_GROUP.findall(match[0])[:ITEMS_LIMIT]
    for start in range(len(groups)):
        digits = ""
        for group in groups[start:]:
            digits += group
            if len(digits) > _CARD_LENGTHS[-1]:
                break
            if looks_like_card(digits):
                return REDACTED
    return match[0]
