"""What Stripe says, made fit for our tables, logs and answers: the one place where it comes in. Pure.

Amounts become those of ISO 4217. Text loses what PostgreSQL cannot store and what forges lines of a
log. Numbers that no column holds become null, which no comparison takes for an amount.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from service.providers.stripe_currencies import STRIPE_AMOUNTS

# Stripe's objects nest about eight levels; what lies deeper is nothing that we read or show.
DEPTH_MAX = 32
# A bigint's digits, less one.
_DIGITS_MAX = 18
# A next_action with a QR code as a data URL has about ten thousand characters.
NEXT_ACTION_CHARACTERS_MAX = 32_768

# Controls (NUL among them), and halves of characters; whole pairs were joined by the parser.
_UNFIT = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
_CLIENT_SECRET = re.compile(r"[A-Za-z0-9_]{1,128}_secret_[A-Za-z0-9_]{1,128}")
# Whole words, looked into after: to look for what surrounds `_secret_` would be quadratic.
_GIVEN_OR_WORD = re.compile(r"(?<=client_secret=)(?P<given>[^&#\s]+)|\w+")
HIDDEN = "hidden"
_AMOUNTS = frozenset(
    {
        *("amount", "amount_received", "amount_capturable", "amount_captured", "amount_refunded"),
        *("amount_remaining", "amount_requested", "amount_authorized", "fee", "net"),
    }
)


def read(body: bytes) -> Any:
    """The JSON of an answer, cleaned; raises ValueError or RecursionError for what is none."""
    found = json.loads(
        body, parse_int=_integer, parse_float=_fraction, parse_constant=lambda _: None
    )
    return _cleaned(found, DEPTH_MAX)


def clean_text(text: str) -> str:
    """The text without what cannot be stored or would forge a line."""
    return _UNFIT.sub("\ufffd", text)


def next_action(found: Any) -> Mapping[str, Any]:
    """What the payer has to do, small enough to be stored and listed; at least its type."""
    if not isinstance(found, dict):
        return {"type": "unknown"}
    if len(json.dumps(found)) <= NEXT_ACTION_CHARACTERS_MAX:
        return found
    kind = found.get("type")
    return {"type": kind if isinstance(kind, str) and len(kind) <= 64 else "unknown"}


def client_secret(found: Any) -> str | None:
    """An intent's client_secret where it looks like one."""
    return found if isinstance(found, str) and _CLIENT_SECRET.fullmatch(found) else None


def without_secrets(found: Any) -> Any:
    """A next_action as everybody may see it: the provider's addresses hold the client_secret."""
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
    # Before int(): thousands of digits are a quadratic conversion.
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
    """An object that has a currency, with its amounts in our minor units."""
    currency = found.get("currency")
    if isinstance(currency, str):
        for name in _AMOUNTS & found.keys():
            if type(found[name]) is int:
                found[name] = STRIPE_AMOUNTS.from_provider(found[name], currency)
    return found
