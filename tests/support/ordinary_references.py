"""Typical order references of merchants, by kind, which the card guard must accept."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from uuid import UUID

_BEGIN = datetime(2024, 1, 1, tzinfo=UTC)
_YEARS = timedelta(days=6 * 365)
# Country codes with the length of a whole number in E.164, with those that begin like cards.
_COUNTRIES = (
    *(("49", 13), ("44", 12), ("43", 13), ("41", 11), ("48", 11), ("34", 11), ("370", 11)),
    *(("375", 12), ("36", 11), ("380", 12), ("385", 12), ("39", 12), ("51", 11), ("52", 12)),
    *(("55", 13), ("57", 12), ("60", 12), ("62", 13), ("63", 12), ("65", 10), ("66", 11)),
    *(("220", 10), ("234", 13), ("27", 11), ("81", 12), ("86", 13), ("91", 12), ("1", 11)),
)


def _digits(dice: random.Random, count: int) -> str:
    return "".join(dice.choices("0123456789", k=count))


def _moment(dice: random.Random) -> datetime:
    return _BEGIN + dice.random() * _YEARS


def _ean13(dice: random.Random) -> str:
    """GS1 prefixes 400 to 440 (Germany), 450 to 459 (Japan), 50 (UK), 57, 59, 64, 69."""
    prefix = dice.choice(["400", "431", "440", "451", "498", "50", "57", "59", "64", "690"])
    body = prefix + _digits(dice, 12 - len(prefix))
    total = sum(int(digit) * (3 if place % 2 else 1) for place, digit in enumerate(body))
    return body + str(-total % 10)


def _telephone(dice: random.Random) -> str:
    code, length = dice.choice(_COUNTRIES)
    number = code + _digits(dice, length - len(code))
    shape = dice.randrange(3)
    if shape == 0:
        return f"+{number}"
    rest = number[len(code) :]
    return f"+{code} {rest[:3]} {rest[3:6]} {rest[6:]}" if shape == 1 else f"00{number}"


def _uuid(dice: random.Random) -> UUID:
    return UUID(int=dice.getrandbits(128), version=4)


KINDS: dict[str, Callable[[random.Random], str]] = {
    "Unix time, seconds": lambda dice: f"{_moment(dice).timestamp():.0f}",
    "Unix time, ms": lambda dice: f"{_moment(dice).timestamp() * 1e3:.0f}",
    "Unix time, us": lambda dice: f"{_moment(dice).timestamp() * 1e6:.0f}",
    "Unix time, ns": lambda dice: f"{_moment(dice).timestamp() * 1e6:.0f}{_digits(dice, 3)}",
    "date and time, 14 digits": lambda dice: f"{_moment(dice):%Y%m%d%H%M%S}",
    "date and time, 17 digits": lambda dice: f"{_moment(dice):%Y%m%d%H%M%S}{_digits(dice, 3)}",
    "ISO 8601": lambda dice: _moment(dice).isoformat(),
    "ISO 8601, with a space": lambda dice: f"{_moment(dice):%Y-%m-%d %H:%M:%S.%f}",
    "EAN-13 like a card": _ean13,
    "order, 10 digits": lambda dice: _digits(dice, 10),
    "order, 12 digits": lambda dice: _digits(dice, 12),
    "order, 13 digits": lambda dice: _digits(dice, 13),
    "order, dated": lambda dice: f"{_moment(dice):%Y-%m-%d}-{_digits(dice, 5)}",
    "order, with letters": lambda dice: f"ORD-{_digits(dice, 8)}-X{_digits(dice, 6)}",
    "telephone, E.164": _telephone,
    "UUID": lambda dice: str(_uuid(dice)),
    "IBAN": lambda dice: f"DE{_digits(dice, 20)}",
}
# References that cannot be distinguished from a card with certainty: their refusal rate is only measured.
LONG_KINDS: dict[str, Callable[[random.Random], str]] = {
    "UUID without dashes": lambda dice: _uuid(dice).hex,
    "SHA-1": lambda dice: f"{dice.getrandbits(160):040x}",
    "order, 14 digits": lambda dice: _digits(dice, 14),
    "order, 15 digits": lambda dice: _digits(dice, 15),
    "order, 16 digits": lambda dice: _digits(dice, 16),
    "order, 18 digits": lambda dice: _digits(dice, 18),
    "IMEI": lambda dice: f"35{_digits(dice, 13)}",
}


def references(kind: Callable[[random.Random], str], count: int) -> list[str]:
    """The same ones in every run."""
    dice = random.Random(20261130)
    return [kind(dice) for _ in range(count)]


def refused_shares(holds_card_number: Callable[[str], bool], count: int) -> dict[str, float]:
    """By kind, the share of `count` references that the guard takes for card numbers."""
    kinds = KINDS | LONG_KINDS
    return {
        name: sum(map(holds_card_number, references(kind, count))) / count
        for name, kind in kinds.items()
    }
