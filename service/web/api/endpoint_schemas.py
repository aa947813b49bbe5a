"""Webhook endpoints over REST as pydantic models: checked on arrival, shown in OpenAPI."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from service.payments.events.endpoints import Endpoint, endpoint_id_text
from service.payments.events.outbox import TOLD
from service.web.api.fields import PLAIN, shown_time

_NAME = r"(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)+[A-Za-z]{2,63}"
_OCTET = r"(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_URL_PATTERN = (
    rf"^https?://(?:{_NAME}|{_OCTET}(?:\.{_OCTET}){{3}})"
    r"(?::(?:443|[1-5][0-9]{4}|[2-9][0-9]{3}))?(?:[/?][!\"$-~]*)?$"
)
_Url = Annotated[
    str,
    Field(
        min_length=1,
        max_length=2048,
        description="https, on the public internet; redirects are not followed.",
        examples=["https://shop.example/webhooks"],
        # Documented, not enforced: the refusal explains what is wrong with an address.
        json_schema_extra={"pattern": _URL_PATTERN},
    ),
]
_EventTypes = Annotated[
    list[
        Annotated[
            str, Field(max_length=64, pattern=rf"^(?:\*|[a-z_]{{1,32}}\.(?:{'|'.join(TOLD)}))$")
        ]
    ],
    Field(
        min_length=1,
        max_length=64,
        description="Event types to deliver, like `payment.succeeded`; `*`: all of them.",
    ),
]
_Description = Annotated[str, Field(max_length=255, pattern=PLAIN)]


class CreateEndpoint(BaseModel):
    """A webhook endpoint to create."""

    model_config = ConfigDict(strict=True, extra="forbid", hide_input_in_errors=True)

    url: _Url
    event_types: _EventTypes = Field(default_factory=lambda: ["*"])
    description: _Description | None = None


class ChangeEndpoint(BaseModel):
    """The changes; omitted fields stay as they are. `enabled` sends the waiting events at once."""

    model_config = ConfigDict(strict=True, extra="forbid", hide_input_in_errors=True)

    url: _Url | None = None
    event_types: _EventTypes | None = None
    description: _Description | None = None
    status: Literal["enabled", "paused"] | None = None


class EndpointDocument(BaseModel):
    """The current state of an endpoint; while it fails, with the time and the reason."""

    model_config = ConfigDict(extra="forbid")

    id: Annotated[str, Field(pattern="^we_[0-9a-f]{32}$")]
    object: Literal["webhook_endpoint"]
    url: str
    description: str | None
    event_types: list[str]
    status: Literal["enabled", "paused"]
    paused_reason: Annotated[
        Literal["failing", "gone", "asked"] | None,
        Field(
            description="`failing`: deliveries failed for days; `gone`: it answered 410; `asked`: by you."
        ),
    ]
    failures: int
    failing_since: datetime | None
    last_error: str | None
    last_delivered_at: datetime | None
    pending: Annotated[int, Field(description="Events still to be delivered; 10000: at least.")]
    given_up: Annotated[
        int, Field(description="Events whose deliveries all failed; request each one again.")
    ]
    created_at: datetime


class EndpointWithSecret(EndpointDocument):
    """The endpoint with its secret, which is shown this once."""

    secret: Annotated[str, Field(pattern="^whsec_")]


class EndpointList(BaseModel):
    """All endpoints of the merchant."""

    data: list[EndpointDocument]


class Redelivery(BaseModel):
    """The endpoints that will receive the event again."""

    event_id: str
    type: str
    endpoints: list[str]


def present_endpoint(endpoint: Endpoint) -> dict[str, Any]:
    """The endpoint in the form of EndpointDocument."""
    return {
        "id": endpoint_id_text(endpoint.endpoint_id),
        "object": "webhook_endpoint",
        "url": endpoint.url,
        "description": endpoint.description,
        "event_types": endpoint.event_types,
        "status": endpoint.status,
        "paused_reason": endpoint.paused_reason,
        "failures": endpoint.failures,
        "failing_since": shown_time(endpoint.failing_since),
        "last_error": endpoint.last_error,
        "last_delivered_at": shown_time(endpoint.last_delivered_at),
        "pending": endpoint.pending,
        "given_up": endpoint.given_up,
        "created_at": shown_time(endpoint.created_at),
    }
