"""Reads the Idempotency-Key header, bare or in the quoted form of the IETF draft."""

from __future__ import annotations

import re

from flask import request

from service.errors import HeaderRepeated, KeyMissing
from service.web.http.bodies import refuse_card_number

_BARE = re.compile(r"[\x21-\x7e]{1,255}")
# An RFC 8941 string: quotes and backslashes inside are escaped. Parameters after it are ignored.
_QUOTED = re.compile(r'"((?:[\x20-\x21\x23-\x5b\x5d-\x7e]|\\["\\])*)"(?:\s*;.*)?')
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')


def read_idempotency_key() -> str:
    """The key of the request being served; raises KeyMissing, HeaderRepeated, CardDataRefused."""
    return parse_idempotency_key(request.headers.get("Idempotency-Key", ""))


def parse_idempotency_key(header: str) -> str:
    """The key, equal for both forms; raises like `read_idempotency_key`."""
    # Blanks and tabs only: Python's other white space is not white space in HTTP.
    key = given = header.strip(" \t")
    if _is_joined(given):
        raise HeaderRepeated(
            "The Idempotency-Key header must stand once; quote a key with a comma."
        )
    if given.startswith('"'):
        match = _QUOTED.fullmatch(given)
        key = re.sub(r"\\(.)", r"\1", match[1]) if match is not None else ""
    if not _BARE.fullmatch(key):
        raise KeyMissing("Send an Idempotency-Key header of 1 to 255 visible ASCII characters.")
    refuse_card_number(key, "Idempotency-Key")
    return key


def _is_joined(given: str) -> bool:
    """Whether a proxy may have joined a repeated header by a comma, with or without a space.

    K and "K, K" would be two keys, and two charges. So a key that contains a comma needs quotes,
    and a comma after the quotes or in a bare key is refused.
    """
    quoted = _STRING.match(given)
    return "," in (given if quoted is None else given[quoted.end() :])
