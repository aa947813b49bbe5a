"""Removes secrets and card numbers from text before it is written to logs or answers."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any
from urllib.parse import quote

from service.observability.card_numbers import card_number_spans, holds_card_number

REDACTED = "[redacted]"

# Long enough for a chained traceback; log collectors cut longer strings.
STRING_LIMIT = 16_384
ITEMS_LIMIT = 64
DEPTH_LIMIT = 6
# A shorter "secret" would remove ordinary words from every line.
SECRET_MIN_LENGTH = 6

# A value under one of these names is a secret, whatever its form.
_SECRET_NAMES = re.compile(
    r"authorization|cookie|password|passwd|secret|api_?key$|token|stripe.signature|card_?number|cvc|cvv",
    re.IGNORECASE,
)

# One pattern, so that a string without secrets is read once. The match of group `keep` remains.
_SECRETS = (
    r"(?P<keep>(?:sk|rk|hf)_(?:live|test)_|whsec_|_secret_|(?:bearer|basic)\s+)"
    r"[\w+/=.~-]{4,}",
    r"(?P<keep_auth>authorization['\"]?\s*[:=]\s*['\"]?)[^\s'\",;]+",
    r"(?P<keep_url>\w://[^\s:/@]*:)[^\s@/]+(?=@)",
    r"(?P<keep_word>\b(?:password|passwd|pgpassword)['\"]?\s*[:=]\s*['\"]?)[^\s'\",;&]+",
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)",
)
# Far above every amount; Python refuses to print an integer of more than some thousand digits.
_LONGEST_INTEGER_BITS = 128

_registered: set[str] = set()
_pattern = re.compile("|".join(_SECRETS), re.IGNORECASE | re.DOTALL)


def redact(secrets: Iterable[str | None]) -> None:
    """Hide these values from now on, also in quoted form; None and short values are skipped."""
    global _pattern
    for secret in secrets:
        if secret and len(secret) >= SECRET_MIN_LENGTH:
            _registered.update({secret, quote(secret, safe=""), repr(secret)[1:-1]})
    # The longest first: one secret may begin with another.
    literal = [re.escape(value) for value in sorted(_registered, key=len, reverse=True)]
    _pattern = re.compile("|".join([*literal, *_SECRETS]), re.IGNORECASE | re.DOTALL)


def clean(value: Any, *, name: str = "", depth: int = 0) -> Any:
    """The value in JSON types, bounded, without secrets and card numbers."""
    if value is None or isinstance(value, bool):
        return value
    if name and _names_a_secret(name):
        return REDACTED
    if type(value) is str:
        return clean_text(value)
    if isinstance(value, int):
        if value.bit_length() > _LONGEST_INTEGER_BITS:
            return "(huge)"
        return REDACTED if holds_card_number(str(abs(int(value)))) else int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(value)
    if isinstance(value, Mapping) and depth < DEPTH_LIMIT:
        pairs = [(str(key), item) for key, item in list(value.items())[:ITEMS_LIMIT]]
        return {clean_text(key): _clean_entry(key, item, depth + 1) for key, item in pairs}
    if isinstance(value, list | tuple | set | frozenset) and depth < DEPTH_LIMIT:
        return [clean(item, depth=depth + 1) for item in list(value)[:ITEMS_LIMIT]]
    return clean_text(str(value))


def clean_text(text: str) -> str:
    """The text without secrets and card numbers, cut at the length limit."""
    if len(text) < SECRET_MIN_LENGTH:
        return text
    # Cut at twice the limit first, so that a secret across the final cut is still matched whole.
    text = text[: 2 * STRING_LIMIT]
    text = _pattern.sub(_hide_secret, text)
    text = _without_card_numbers(text)
    return text if len(text) <= STRING_LIMIT else text[:STRING_LIMIT] + "…"


def _clean_entry(key: str, item: Any, depth: int) -> Any:
    """The cleaned item; a card number that begins in the key and ends in the item is hidden too."""
    if (
        key[-1:].isdigit()
        and isinstance(item, str | int)
        and holds_card_number(f"{key} {clean(item)}"[:STRING_LIMIT])
    ):
        return REDACTED
    return clean(item, name=key, depth=depth)


@lru_cache(maxsize=1024)
def _names_a_secret(name: str) -> bool:
    return _SECRET_NAMES.search(name) is not None


def _hide_secret(match: re.Match[str]) -> str:
    kept = next((group for group in match.groups() if group), "")
    return kept + REDACTED


def _without_card_numbers(text: str) -> str:
    kept, at = [], 0
    for begin, end in card_number_spans(text):
        if end > at:
            kept += [text[at:begin], REDACTED] if begin >= at else []
            at = end
    return "".join([*kept, text[at:]]) if at else text
