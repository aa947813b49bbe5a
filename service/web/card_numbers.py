"""Tells whether a text holds what looks like a card number, so that it is never taken in."""

from __future__ import annotations

import re
from collections.abc import Iterator

# Groups of digits, joined by at most one of the separators people type.
_RUN = re.compile(r"\d+(?:[\s.\-_/]\d+)*")
_GROUP = re.compile(r"\d+")
# A random UUID or a long hexadecimal digest often holds a run of digits that passes Luhn by chance;
# without this one idempotency key in a few thousand would be refused.
_IDENTIFIER = re.compile(
    r"[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}|(?=[0-9]*[a-f])[0-9a-f]{24,}", re.IGNORECASE
)
_SHORTEST, _LONGEST = 13, 19
# The first digit of every card scheme in use; account and order numbers often begin with others.
_FIRST_DIGITS = frozenset("23456")


def holds_card_number(text: str) -> bool:
    """True where 13 to 19 digits, alone or grouped, pass the Luhn check and begin like a card."""
    if len(text) < _SHORTEST:
        return False
    text = _IDENTIFIER.sub("x", text)
    return any(_looks_like_card(digits) for run in _RUN.findall(text) for digits in _joined(run))


def _joined(run: str) -> Iterator[str]:
    """Every sequence of neighbouring groups that is as long as a card number may be."""
    groups = [_ascii(group) for group in _GROUP.findall(run)]
    for first in range(len(groups)):
        digits = ""
        for group in groups[first:]:
            digits += group
            if len(digits) > _LONGEST:
                break
            if len(digits) >= _SHORTEST:
                yield digits


def _ascii(group: str) -> str:
    # Full-width and other scripts' digits are digits too.
    return group if group.isascii() else "".join(str(int(digit)) for digit in group)


def _looks_like_card(digits: str) -> bool:
    return digits[0] in _FIRST_DIGITS and _luhn(digits)


def _luhn(digits: str) -> bool:
    total = 0
    for place, digit in enumerate(reversed(digits)):
        value = int(digit) * (1 + place % 2)
        total += value - 9 if value > 9 else value
    return total % 10 == 0
