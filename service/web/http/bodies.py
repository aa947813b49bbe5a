"""Reads a request's JSON strictly: bounded, no repeated key, no floats, no card numbers."""

from __future__ import annotations

import json
import re
from typing import Any, NoReturn, TypeVar

from flask import request
from pydantic import BaseModel, ValidationError

from service.errors import BodyTooLarge, CardDataRefused, InvalidJson, ValidationFailed
from service.observability.card_numbers import holds_card_number
from service.web.http.header_rules import (
    MAX_BODY_BYTES,
)

# The deepest request of the contract has two levels; callers must not fill the parser's stack.
MAX_DEPTH = 8

# Twice the longest field of the contract (an operator's evidence): length is checked first.
MAX_TEXT = 4096
# Python refuses to print integers of some thousand digits; a card number has 64 bits at most.
_MAX_INTEGER_BITS = 64

# Controls forge log lines and NUL cannot be stored; a lone surrogate is no character.
_UNSTORABLE = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")

Model = TypeVar("Model", bound=BaseModel)


def read_body(limit: int = MAX_BODY_BYTES) -> bytes:
    """The raw body, at most `limit` bytes, with or without an announced length."""
    if (request.content_length or 0) > limit:
        raise BodyTooLarge(f"The body is larger than {limit} bytes.")
    body: bytes = request.stream.read(limit + 1)
    if len(body) > limit:
        raise BodyTooLarge(f"The body is larger than {limit} bytes.")
    return body


def parse_object(body: bytes) -> dict[str, Any]:
    """The body as one JSON object; raises InvalidJson, CardDataRefused."""
    try:
        parsed = json.loads(
            body.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_float=_refuse_float,
            parse_constant=_refuse_constant,
        )
    except _JsonRefused as refused:
        raise InvalidJson(str(refused)) from None
    except RecursionError:
        raise InvalidJson("The JSON is nested too deep.") from None
    except ValueError:
        # The parser's message contains a position at most, but its exception holds the whole body.
        raise InvalidJson("The body is not JSON in UTF-8.") from None
    if not isinstance(parsed, dict):
        raise InvalidJson("The body must be one JSON object.")
    _inspect(parsed, depth=1)
    return parsed


def validated(model: type[Model], values: dict[str, Any]) -> Model:
    """The model's instance; raises ValidationFailed, which names fields but never values."""
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
    """Raise CardDataRefused when `text` looks like a card number; `where` names the place."""
    if holds_card_number(text):
        raise CardDataRefused(
            f"{where} holds what looks like a card number; send a token instead.",
            fields=[{"field": where, "reason": "looks like a card number"}],
        )


class _JsonRefused(ValueError):
    """Valid JSON that we refuse; the message contains nothing of it."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    parsed = dict(pairs)
    if len(parsed) != len(pairs):
        raise _JsonRefused("A key appears twice in one object.")
    return parsed


def _refuse_float(_text: str) -> NoReturn:
    # Amounts in floats lose cents; the contract has no other fractions.
    raise ValidationFailed(
        "Fractions are refused: amounts are integers in minor units.",
        fields=[{"field": "(number)", "reason": "must be an integer"}],
    )


def _refuse_constant(_text: str) -> NoReturn:
    raise _JsonRefused("NaN and Infinity are not JSON.")


def _inspect(value: Any, *, depth: int, field: str = "body") -> None:
    """Check every key, value and pair for card numbers, and the depth."""
    if depth > MAX_DEPTH:
        raise InvalidJson("The JSON is nested too deep.")
    if isinstance(value, str):
        refuse_unfit_text(value, field)
    elif isinstance(value, dict):
        for key, inner in value.items():
            refuse_unfit_text(key, field)
            _inspect(inner, depth=depth + 1, field=shown(key) if depth == 1 else field)
            # Only within the pair: item numbers joined with their counts would look like cards.
            refuse_card_number(f"{key} {_text_of(inner)}", field)
    elif isinstance(value, list):
        for inner in value:
            _inspect(inner, depth=depth + 1, field=field)
        refuse_card_number(" ".join(map(_text_of, value)), field)
    else:
        refuse_card_number(_text_of(value), field)


def _text_of(value: Any) -> str:
    """A scalar as its text; a container, or a text too long for a card, becomes a word."""
    if isinstance(value, str):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(abs(value)) if value.bit_length() <= _MAX_INTEGER_BITS else "huge"
    return "other"


def refuse_unfit_text(text: str, field: str) -> None:
    """Raise for texts that are too long, or have controls, surrogates or card numbers."""
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
    """The top field; a name that the caller chose is shown only in the form of a name."""
    if not loc:
        return "body"
    name = str(loc[0])
    return shown(name) if kind == "extra_forbidden" else name


def shown(name: str) -> str:
    """A caller's own field name for display: short, letters only, else a placeholder."""
    plain = name.replace("_", "")
    return name if len(name) <= 32 and plain.isascii() and plain.isalpha() else "(unknown)"
