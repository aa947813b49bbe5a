"""Parses Stripe's JSON and cleans it for our tables, logs and answers, in this one place. Pure.

Amounts become ISO 4217 minor units. Text loses characters that PostgreSQL cannot store and those
that forge lines of a log. Numbers too large for a column become null, which equals no amount.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from service.providers.stripe.currencies import STRIPE_AMOUNTS

# Stripe's objects nest about eight levels; we neither read nor show deeper ones.
DEPTH_MAX = 32
# One digit less than a bigint has.
_DIGITS_MAX = 18
# A next_action with a QR code as a data URL has about ten thousand characters.
NEXT_ACTION_CHARACTERS_MAX = 32_768

# Control characters (with NUL) and lone surrogates; the parser has joined whole pairs.
_UNFIT = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
_CLIENT_SECRET = re.compile(r"[A-Za-z0-9_]{1,128}_secret_[A-Za-z0-9_]{1,128}")
# Match whole words first, then search inside: a pattern around `_secret_` would be quadratic.
_GIVEN_OR_WORD = re.compile(r"(?<=client_secret=)(?P<given>[^&#\s]+)|\w+")
HIDDEN = "hidden"
_AMOUNTS = frozenset(
    {
        *("amount", "amount_received", "amount_capturable", "amount_captured", "amount_refunded"),
        *("amount_remaining", "amount_requested", "amount_authorized", "fee", "net"),
    }
)


def read(body: bytes) -> Any:
    """The cleaned JSON of an answer; raises ValueError or RecursionError for other text."""
    found = json.loads(
        body, parse_int=_integer, parse_float=_fraction, parse_constant=lambda _: None
    )
    return _cleaned(found, DEPTH_MAX)


def clean_text(text: str) -> str:
    """The text without characters that cannot be stored or would forge a line."""
    return _UNFIT.sub("\ufffd", text)


def next_action(found: Any) -> Mapping[str, Any]:
    """The payer's next action, small enough to be stored and listed; at least its type."""
    if not isinstance(found, dict):
        return {"type": "unknown"}
    if len(json.dumps(found)) <= NEXT_ACTION_CHARACTERS_MAX:
        return found
    kind = found.get("type")
    return {"type": kind if isinstance(kind, str) and len(kind) <= 64 else "unknown"}


def client_secret(found: Any) -> str | None:
    """An intent's client_secret, if it has the form of one."""
    return found if isinstance(found, str) and _CLIENT_SECRET.fullmatch(found) else None


def without_secrets(found: Any) -> Any:
    """A next_action without secrets: the provider's URLs contain the client_secret."""
    if isinstance(found, str):
        return _GIVEN_OR_WORD.sub(_hide_secret, found)
    if isinstance(found, list):
        return [without_secrets(one) for one in found]
    if isinstance(found, dict):
        return {
            name: HIDDEN if "secret" in name.lower() else without_secrets(one)
            for name, one in found.items()
        }
    return found


def _hide_secret(match: re.Match[str]) -> str:
    is_secret = match["given"] is not None or "_secret_" in match[0][:-1]
    return HIDDEN if is_secret else match[0]


def _integer(digits: str) -> int | None:
    # Check before int(): the conversion of thousands of digits is quadratic.
    return int(digits) if len(digits) <= _DIGITS_MAX else None


def _fraction(digits: str) -> float | None:
    number = float(digits)
    return number if math.isfinite(number) else None


def _cleaned(found: Any, depth: int) -> Any:
    if isinstance(found, str):
        return clean_text(found)
    if depth == 0 and isinstance(found, dict | list):
        return None
    if isinstance(found, list):
        return [_cleaned(one, depth - 1) for one in found]
    if isinstance(found, dict):
        clean = {clean_text(name): _cleaned(one, depth - 1) for name, one in found.items()}
        return _in_iso_4217(clean)
    return found


def _in_iso_4217(found: dict[str, Any]) -> dict[str, Any]:
    """An object with a currency, with its amounts in ISO 4217 minor units."""
    currency = found.get("currency")
    if isinstance(currency, str):
        for name in _AMOUNTS & found.keys():
            if type(found[name]) is int:
                found[name] = STRIPE_AMOUNTS.from_provider(found[name], currency)
    return found
