"""The description of a call in a plane's OpenAPI document, declared beside its view."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pydantic import BaseModel

View = TypeVar("View", bound=Callable[..., Any])

JSON = "application/json"


@dataclass(frozen=True, slots=True)
class HeaderIn:
    """An optional or required request header."""

    name: str
    tells: str
    schema: Mapping[str, Any]
    required: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """The document's description of one call, without the parts that all calls share."""

    summary: str
    # status -> (its meaning, the body's model or None)
    answers: Mapping[int, tuple[str, type[BaseModel] | None]]
    media_type: str = JSON
    # status -> headers that such an answer always has, besides the common ones.
    sends: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    # Besides the codes that follow from the scope, the body, the query and the path.
    problems: tuple[str, ...] = ()
    body: type[BaseModel] | None = None
    query: type[BaseModel] | None = None
    headers: tuple[HeaderIn, ...] = ()
    # None: open without a key.
    scope: str | None = None
    # An example body, which the page shows as a command that runs.
    example: Mapping[str, Any] | None = None


def documented(operation: Operation) -> Callable[[View], View]:
    """Put `operation` on a view, for the document; the view itself is not changed."""

    def mark(view: View) -> View:
        view.operation = operation  # type: ignore[attr-defined]
        return view

    return mark


TIMEOUT = HeaderIn(
    "X-Request-Timeout-Ms",
    "Lowers the time we take, never raises it.",
    {"type": "integer", "minimum": 1, "maximum": 999_999_999},
)
IDEMPOTENCY_KEY = HeaderIn(
    "Idempotency-Key",
    "1 to 255 visible ASCII characters, bare or as a quoted string; with a comma only in quotes.",
    {
        "type": "string",
        "pattern": r'^(?:[!#-+\--~][!-+\--~]{0,254}|"(?:[!#-\[\]-~]|\\["\\]){1,255}")$',
    },
    required=True,
)
PREFER_ASYNC = HeaderIn(
    "Prefer",
    "`respond-async`: answer 202 as soon as the payment is stored.",
    {"type": "string"},
)
PREFER_WAIT = HeaderIn(
    "Prefer",
    "`wait=N`: hold the answer up to N seconds for the payment to settle.",
    {"type": "string"},
)
IF_NONE_MATCH = HeaderIn("If-None-Match", "304 while the payment is as it was.", {"type": "string"})
STRIPE_SIGNATURE = HeaderIn(
    "Stripe-Signature",
    "`t=<time>,v1=<HMAC-SHA256 of time, dot, body>`",
    {"type": "string", "pattern": "^t=[0-9]{1,12},v1=[0-9a-f]{64}$"},
    required=True,
)
