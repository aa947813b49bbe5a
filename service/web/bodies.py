"""Reads a request's JSON strictly: bounded, no key twice, no floats, no card numbers."""

from __future__ import annotations

import json
import re
from typing import Any, NoReturn, TypeVar

from flask import request
from pydantic import BaseModel, ValidationError

from service.errors import BodyTooLarge, CardDataRefused, InvalidJson, ValidationFailed
from service.observability.card_numbers import holds_card_number
from service.web.incoming import MAX_BODY_BYTES

# The deepest request of the contract has two levels; a parser's stack is not for callers to fill.
MAX_DEPTH = 8

# Twice the longest field of the contract (an operator's evidence): length comes before content.
MAX_TEXT = 4096
# Python writes out no integer of more than some thousand digits; a card number has 64 bits at most.
_MAX_INTEGER_BITS = 64

# Controls forge log lines and NUL cannot be stored; a lone surrogate is not a character at all.
_UNSTORABLE = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")

Model = TypeVar("Model", bound=BaseModel)


def read_body(limit: int = MAX_BODY_BYTES) -> bytes:
    """The raw body, at most `limit` bytes, whether or not its length was announced."""
    if (request.content_length or 0) > limit:
        raise BodyTooLarge(f"The body is larger than {limit} bytes.")
    body: bytes = request.stream.read(limit + 1)
    if len(body) > limit:
        raise BodyTooLarge(f"The body is larger than {limit} bytes.")
    return body


def parse_object(body: bytes) -> dict[str, Any]:
    """The one JSON object that the body is; raises InvalidJson, CardDataRefused."""
    try:
        parsed = json.loads(
            body.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_float=_refuse_float,
            parse_constant=_refuse_constant,
        )
    except _Refused as refused:
        raise InvalidJson(str(refused)) from None
    except RecursionError:
        raise InvalidJson("The JSON is nested too deep.") from None
    except ValueError:
        # The parser's own message holds a position at most, but the exception holds the whole body.
        raise InvalidJson("The body is not JSON in UTF-8.") from None
    if not isinstance(parsed, dict):
        raise InvalidJson("The body must be one JSON object.")
    _inspect(parsed, depth=1)
    return parsed


def validated(model: type[Model], values: dict[str, Any]) -> Model:
    """The model's instance; raises ValidationFailed, which names fields and never shows values."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        fields = [
            {
                "field": _field_name(problem["loc"], problem["type"]),
                "reason": problem["msg"].removeprefix("Value error, "),
            }
            for problem in error.errors(
                include_input=False, include_url=False, include_context=False
            )
        ]
        names = ", ".join(sorted({field["field"] for field in fields}))
        raise ValidationFailed(f"Refused: {names}.", fields=fields[:20]) from None


def refuse_card_number(text: str, where: str) -> None:
    """Raise CardDataRefused when `text` looks like a card number; `where` is what to name."""
    if holds_card_number(text):
        raise CardDataRefused(
            f"{where} holds what looks like a card number; send a token instead.",
            fields=[{"field": where, "reason": "looks like a card number"}],
        )


class _Refused(ValueError):
    """JSON that parses but that we do not take; the message holds nothing of it."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    parsed = dict(pairs)
    if len(parsed) != len(pairs):
        raise _Refused("A key stands twice in one object.")
    return parsed


def _refuse_float(_text: str) -> NoReturn:
    # Amounts in floats lose cents; nothing else in the contract is a fraction.
    raise ValidationFailed(
        "Fractions are refused: amounts are integers in minor units.",
        fields=[{"field": "(number)", "reason": "must be an integer"}],
    )


def _refuse_constant(_text: str) -> NoReturn:
    raise _Refused("NaN and Infinity are not JSON.")


def _inspect(value: Any, *, depth: int, field: str = "body") -> None:
    """Look for card numbers in every key and value, and over both; and for depth."""
    if depth > MAX_DEPTH:
        raise InvalidJson("The JSON is nested too deep.")
    if isinstance(value, str):
        refuse_unfit_text(value, field)
    elif isinstance(value, dict):
        for key, inner in value.items():
            refuse_unfit_text(key, field)
            _inspect(inner, depth=depth + 1, field=shown(key) if depth == 1 else field)
            # No further than the pair: item numbers with their counts would look like cards.
            refuse_card_number(f"{key} {_text_of(inner)}", field)
    elif isinstance(value, list):
        for inner in value:
            _inspect(inner, depth=depth + 1, field=field)
        refuse_card_number(" ".join(map(_text_of, value)), field)
    else:
        refuse_card_number(_text_of(value), field)


def _text_of(value: Any) -> str:
    """A scalar as its text; what it holds of others, and what is too long for a card, is a word."""
    if isinstance(value, str):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(abs(value)) if value.bit_length() <= _MAX_INTEGER_BITS else "huge"
    return "other"


def refuse_unfit_text(text: str, field: str) -> None:
    """Raise for what is never stored: texts without end, controls, half characters, card numbers."""
    if len(text) > MAX_TEXT:
        raise ValidationFailed(
            f"Refused: {field}.",
            fields=[{"field": field, "reason": f"is longer than {MAX_TEXT} characters"}],
        )
    if _UNSTORABLE.search(text):
        raise ValidationFailed(
            f"Refused: {field}.",
            fields=[{"field": field, "reason": "holds control characters or half a character"}],
        )
    refuse_card_number(text, field)


def _field_name(loc: tuple[int | str, ...], kind: str) -> str:
    """The top field; a name that the caller made up is shown only when it is plainly a name."""
    if not loc:
        return "body"
    name = str(loc[0])
    return shown(name) if kind == "extra_forbidden" else name


def shown(name: str) -> str:
    """A caller's own field name as it may be shown: short, letters only, else a placeholder."""
    plain = name.replace("_", "")
    return name if len(name) <= 32 and plain.isascii() and plain.isalpha() else "(unknown)"
