"""Stripe's form-encoded parameters: nested keys in, validated values out."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any
from urllib.parse import parse_qsl

from service.lab.sandbox.errors import invalid

Form = dict[str, Any]
Check = Callable[[str, Any], Any]

# Stripe's own limits for metadata, and for an amount in any currency (currencies.py has the rest).
METADATA_KEYS = 50
METADATA_KEY_CHARACTERS = 40
METADATA_VALUE_CHARACTERS = 500
AMOUNT_MAX = 999_999_999_999
# Far above any real call; a bound for the parser.
FIELDS_MAX = 300

_PART = re.compile(r"\[([^\[\]]*)\]")


def parse(encoded: str) -> Form:
    """Parse `a=1&metadata[k]=v&expand[]=x` into nested dictionaries; `[]` collects a list."""
    try:
        pairs = parse_qsl(
            encoded, keep_blank_values=True, max_num_fields=FIELDS_MAX, errors="strict"
        )
    except ValueError as error:
        raise invalid("The request body is not a valid form.") from error
    form: Form = {}
    for name, value in pairs:
        if "[" in name:
            _put(form, name, value)
        else:
            form[name] = value
    return form


def _put(form: Form, name: str, value: str) -> None:
    head, bracket, rest = name.partition("[")
    path = [head, *_PART.findall(bracket + rest)]
    here = form
    for part, following in pairwise(path):
        if following == "":
            gathered = here.setdefault(part, [])
            if not isinstance(gathered, list):
                raise invalid(f"Invalid parameter: {name}", param=name)
            gathered.append(value)
            return
        inner = here.setdefault(part, {})
        if not isinstance(inner, dict):
            raise invalid(f"Invalid parameter: {name}", param=name)
        here = inner
    here[path[-1]] = value


def check(form: Form, checks: Mapping[str, Check], *, required: tuple[str, ...] = ()) -> Form:
    """Return the validated values; refuse missing, unknown and invalid ones."""
    for name in form:
        if name not in checks:
            raise invalid(
                f"Received unknown parameter: {name}", code="parameter_unknown", param=name
            )
    for name in required:
        if form.get(name, "") == "":
            raise invalid(f"Missing required param: {name}.", code="parameter_missing", param=name)
    return {name: checks[name](name, value) for name, value in form.items()}


def text(name: str, value: Any) -> str | None:
    """A string; the empty string unsets, as with Stripe."""
    if not isinstance(value, str):
        raise invalid(f"Invalid string: {name}", param=name)
    return value or None


def integer(name: str, value: Any) -> int:
    if not isinstance(value, str) or not re.fullmatch(r"-?[0-9]{1,15}", value):
        raise invalid(f"Invalid integer: {value}", code="parameter_invalid_integer", param=name)
    return int(value)


def amount(name: str, value: Any) -> int:
    """A positive number of minor units; currencies.py checks the currency's own limits."""
    minor = integer(name, value)
    if minor < 1:
        raise invalid(
            "This value must be greater than or equal to 1.",
            code="parameter_invalid_integer",
            param=name,
        )
    if minor > AMOUNT_MAX:
        raise invalid(
            f"Amount must be no more than {AMOUNT_MAX}.", code="amount_too_large", param=name
        )
    return minor


def page_size(name: str, value: Any) -> int:
    size = integer(name, value)
    if not 1 <= size <= 100:
        raise invalid(
            "This value must be between 1 and 100.", code="parameter_invalid_integer", param=name
        )
    return size


def boolean(name: str, value: Any) -> bool:
    if value not in ("true", "false"):
        raise invalid(f"Invalid boolean: {value}", param=name)
    return bool(value == "true")


def currency(name: str, value: Any) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z]{3}", value):
        raise invalid(f"Invalid currency: {value}", param=name)
    return value.lower()


def one_of(*choices: str) -> Check:
    """A check that the value is one of `choices`."""

    def checked(name: str, value: Any) -> str:
        if value not in choices:
            raise invalid(f"Invalid {name}: must be one of {', '.join(choices)}", param=name)
        return str(value)

    return checked


def metadata(name: str, value: Any) -> dict[str, str]:
    if value == "":
        return {}
    if not isinstance(value, dict) or len(value) > METADATA_KEYS:
        raise invalid("Metadata must be at most 50 string keys and values.", param=name)
    for key, content in value.items():
        if not isinstance(content, str):
            raise invalid("Metadata values must be strings.", param=f"{name}[{key}]")
        if len(key) > METADATA_KEY_CHARACTERS or len(content) > METADATA_VALUE_CHARACTERS:
            raise invalid("Metadata keys or values are too long.", param=f"{name}[{key}]")
    return dict(value)


def time_range(name: str, value: Any) -> dict[str, int]:
    """`created[gte]=..`, or `created=..` for one second."""
    if isinstance(value, str):
        moment = integer(name, value)
        return {"gte": moment, "lte": moment}
    if not isinstance(value, dict) or not set(value) <= {"gt", "gte", "lt", "lte"}:
        raise invalid(f"Invalid {name}: give gt, gte, lt or lte.", param=name)
    return {bound: integer(f"{name}[{bound}]", moment) for bound, moment in value.items()}


def strings(name: str, value: Any) -> list[str]:
    """A list of strings, from `name[]=..` or `name[0]=..`."""
    if isinstance(value, dict):
        value = list(value.values())
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise invalid(f"Invalid array: {name}", param=name)
    return list(value)


def anything(_name: str, value: Any) -> Any:
    """Accepted as Stripe accepts it, and ignored here."""
    return value
