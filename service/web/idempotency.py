"""Reads the Idempotency-Key header, bare or in the quoted form of the IETF draft."""

from __future__ import annotations

import re

from flask import request

from service.errors import KeyMissing
from service.web.bodies import refuse_card_number

_BARE = re.compile(r"[\x21-\x7e]{1,255}")
# An RFC 8941 string: quotes and backslashes inside are escaped. Parameters after it mean nothing.
_QUOTED = re.compile(r'"((?:[\x20-\x21\x23-\x5b\x5d-\x7e]|\\["\\])*)"(?:\s*;.*)?')


def read_idempotency_key() -> str:
    """The key of the request being served; raises KeyMissing, CardDataRefused."""
    return parse_idempotency_key(request.headers.get("Idempotency-Key", ""))


def parse_idempotency_key(header: str) -> str:
    """The key, the same whichever way it was written; raises KeyMissing, CardDataRefused."""
    key = given = header.strip()
    if given.startswith('"'):
        match = _QUOTED.fullmatch(given)
        key = re.sub(r"\\(.)", r"\1", match[1]) if match is not None else ""
    if not _BARE.fullmatch(key):
        raise KeyMissing("Send an Idempotency-Key header of 1 to 255 visible ASCII characters.")
    refuse_card_number(key, "Idempotency-Key")
    return key
