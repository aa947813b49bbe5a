"""Validates the forms for Stripe: a caller's text stays a value and never becomes syntax. Pure.

The HTTP interfaces refuse unsendable text before a payment is stored. This is the second check,
directly before the request, for payments stored earlier or by another path.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from service.providers.amounts import NotRepresentable
from service.providers.stripe.currencies import STRIPE_AMOUNTS
from service.providers.stripe.json import clean_text

# https://docs.stripe.com/api/metadata, read in November 2026.
METADATA_ENTRIES_MAX = 50
METADATA_KEY_CHARACTERS_MAX = 40
METADATA_VALUE_CHARACTERS_MAX = 500
_VALUE_CHARACTERS_MAX = 5_000

_FIELD = re.compile(r"(?!metadata\b)[a-z_]{1,60}(\[\])?")
_METADATA_FIELD = re.compile(rf"metadata\[([^\[\]]{{1,{METADATA_KEY_CHARACTERS_MAX}}})\]")
_PATH = re.compile(r"/v1/[a-z_]+(/[A-Za-z0-9_]{1,100}(/[a-z_]+)?)?")


class Unsendable(ValueError):
    """Stripe's form cannot express the request; nothing was sent. The text contains no value."""


def amount(amount_minor: int, currency: str) -> str:
    """The amount in Stripe's units; raises Unsendable."""
    try:
        return str(STRIPE_AMOUNTS.to_provider(amount_minor, currency))
    except NotRepresentable as error:
        raise Unsendable(str(error)) from None


def check(path: str, form: Mapping[str, str]) -> None:
    """Raise Unsendable for a path or form that Stripe could read in another way."""
    if not _PATH.fullmatch(path):
        raise Unsendable("an id that would leave its place in the address")
    entries = 0
    for name, text in form.items():
        is_metadata = _METADATA_FIELD.fullmatch(name) is not None
        entries += is_metadata
        if not is_metadata and not _FIELD.fullmatch(name):
            raise Unsendable("a field's name that is syntax of the form")
        longest = METADATA_VALUE_CHARACTERS_MAX if is_metadata else _VALUE_CHARACTERS_MAX
        # An empty value would delete the entry, or the field.
        if not 0 < len(text) <= longest or clean_text(name + text) != name + text:
            raise Unsendable("a value that is empty, too long or holds controls")
    if entries > METADATA_ENTRIES_MAX:
        raise Unsendable(f"more than {METADATA_ENTRIES_MAX} entries of metadata")
