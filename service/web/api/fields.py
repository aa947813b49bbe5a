"""The kinds of values in requests and answers over REST: money, moments, texts, metadata."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

from iso4217 import Currency
from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema

# Twelve digits: the providers' maximum, and far inside a bigint even as the sum of a year.
MAX_AMOUNT_MINOR = 999_999_999_999
# Funds, metals and test codes have no minor unit, so an amount in them has no meaning.
CURRENCIES = frozenset(
    currency.code.lower() for currency in Currency if currency.exponent is not None
)
# Providers accept 50 in all; three are ours.
MAX_METADATA_ENTRIES = 47
# The names of our own entries, which link the provider's records to ours.
RESERVED_METADATA = frozenset(
    {"payment_id", "merchant_id", "reference", "key_digest", "refund_id", "reason"}
)
RESERVED_METADATA_PREFIX = "holdfast"


def _known_currency(code: str) -> str:
    if code not in CURRENCIES:
        raise ValueError("must be a lower-case ISO 4217 code of a currency with minor units")
    return code


def _moment(value: object) -> datetime:
    """RFC 3339 with a time zone: a time without one would be ambiguous."""
    if not isinstance(value, str):
        raise ValueError("must be a time as text, like 2026-01-31T12:00:00Z")
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        raise ValueError("must look like 2026-01-31T12:00:00Z") from None
    if moment.tzinfo is None or moment.utcoffset() is None:
        raise ValueError("must carry its zone, like 2026-01-31T12:00:00Z")
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        raise ValueError("is out of range") from None


Moment = Annotated[
    datetime, BeforeValidator(_moment), WithJsonSchema({"type": "string", "format": "date-time"})
]
CurrencyCode = Annotated[
    str,
    AfterValidator(_known_currency),
    WithJsonSchema(
        {
            "type": "string",
            "enum": sorted(CURRENCIES),
            "description": "ISO 4217, lower case",
            "examples": ["usd"],
        }
    ),
]
AmountMinor = Annotated[
    int,
    Field(
        ge=1,
        le=MAX_AMOUNT_MINOR,
        description=(
            "Integer, in the minor units of ISO 4217: 2599 is 25.99 USD, or 2599 JPY. An amount"
            " that the payment provider cannot charge (below its minimum, above its maximum, or"
            " 5.124 KWD: its last digit must be 0) is 422 `amount_not_representable`."
        ),
        examples=[2599],
    ),
]
# Controls forge log lines, and NUL cannot be stored; bodies.py checks every text for them, and
# this pattern documents it.
PLAIN = r"^[^\x00-\x1f\x7f]*$"
Token = Annotated[str, Field(min_length=1, max_length=255, pattern=r"^[\x21-\x7e]+$")]
# Square brackets are syntax of the forms that carry metadata to a provider.
_METADATA_KEY = r"^[^\x00-\x1f\x7f\[\]]*$"


def _unreserved(name: str) -> str:
    if name in RESERVED_METADATA or name.startswith(RESERVED_METADATA_PREFIX):
        raise ValueError("has a key that is ours: payment_id, merchant_id, reference and others")
    return name


Metadata = Annotated[
    dict[
        Annotated[
            str,
            Field(min_length=1, max_length=40, pattern=_METADATA_KEY),
            AfterValidator(_unreserved),
        ],
        # A provider drops an entry with an empty value.
        Annotated[str, Field(min_length=1, max_length=500)],
    ],
    Field(max_length=MAX_METADATA_ENTRIES),
    WithJsonSchema(
        {
            "type": "object",
            "maxProperties": MAX_METADATA_ENTRIES,
            "propertyNames": {
                "minLength": 1,
                "maxLength": 40,
                "pattern": _METADATA_KEY,
                "not": {
                    "anyOf": [
                        {"enum": sorted(RESERVED_METADATA)},
                        {"pattern": f"^{RESERVED_METADATA_PREFIX}"},
                    ]
                },
            },
            "additionalProperties": {
                "type": "string",
                "minLength": 1,
                "maxLength": 500,
                "pattern": PLAIN,
            },
            "examples": [{"order": "123"}],
        }
    ),
]


def shown_time(moment: datetime | None) -> str | None:
    """RFC 3339 in UTC."""
    return None if moment is None else moment.astimezone(UTC).isoformat().replace("+00:00", "Z")
