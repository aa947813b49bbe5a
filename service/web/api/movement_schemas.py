"""REST models of captures, voids, refunds and events: checked here, shown in OpenAPI."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from service.ids import (
    payment_id_text,
)
from service.payments.charge.model import (
    Payment,
)
from service.payments.events.feed import FeedEvent
from service.payments.movements.model import Movement, MovementStatus
from service.web.api.fields import PLAIN, AmountMinor, shown_time
from service.web.api.schemas import Attempt
from service.web.api.timeline_schemas import StepDetail
from service.web.http.problem_schemas import (
    Decline,
)

RefundStatus = Literal[
    "queued", "processing", "pending", "succeeded", "declined", "unknown", "needs_review"
]
_SHOWN_STATUS = {MovementStatus.ACCEPTED: "queued", MovementStatus.SENDING: "processing"}
_OUTCOMES = {
    MovementStatus.ACCEPTED: "pending",
    MovementStatus.SENDING: "pending",
    MovementStatus.PENDING: "pending",
    MovementStatus.SUCCEEDED: "succeeded",
    MovementStatus.DECLINED: "declined",
    MovementStatus.UNKNOWN: "unknown",
    MovementStatus.NEEDS_REVIEW: "unknown",
}


class CapturePayment(BaseModel):
    """The amount to capture of the reserved money; the rest is released."""

    model_config = ConfigDict(strict=True, extra="forbid", hide_input_in_errors=True)

    amount: Annotated[
        AmountMinor | None, Field(description="Omitted: the whole authorised amount.")
    ] = None


class CreateRefund(BaseModel):
    """A refund to make."""

    model_config = ConfigDict(strict=True, extra="forbid", hide_input_in_errors=True)

    amount: AmountMinor
    reason: Annotated[
        str | None,
        Field(
            min_length=1,
            max_length=255,
            pattern=PLAIN,
            description=(
                "Yours; providers know `duplicate`, `fraudulent` and `requested_by_customer`."
            ),
            examples=["requested_by_customer"],
        ),
    ] = None


class RefundQuery(BaseModel):
    """The page of a payment's refunds to list."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    cursor: Annotated[
        str | None,
        Field(pattern="^ref_[0-9a-f]{32}$", description="`next_cursor` of the previous page"),
    ] = None
    limit: Annotated[int, Field(ge=1, le=100)] = 20


class EventQuery(BaseModel):
    """The position to read from."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    cursor: Annotated[
        str | None,
        Field(pattern="^evt_[0-9a-f]{32}$", description="`next_cursor` of the last answer"),
    ] = None
    limit: Annotated[int, Field(ge=1, le=100)] = 20


class RefundLinks(BaseModel):
    """Addresses of related resources."""

    model_config = ConfigDict(populate_by_name=True)

    itself: Annotated[str, Field(alias="self")]
    payment: str


class RefundDocument(BaseModel):
    """The current state of a refund."""

    model_config = ConfigDict(extra="forbid")

    id: Annotated[str, Field(pattern="^ref_[0-9a-f]{32}$")]
    object: Literal["refund"]
    status: RefundStatus
    outcome: Annotated[
        Literal["succeeded", "pending", "declined", "unknown"],
        Field(description="The known state of the money; `unknown`: a look-up is in progress."),
    ]
    amount: int
    currency: str
    payment_id: str
    reason: str | None
    provider: str
    provider_ref: str | None
    decline: Decline | None
    next_check_at: datetime | None
    attempts: list[Attempt]
    created_at: datetime
    updated_at: datetime
    links: RefundLinks


class RefundPage(BaseModel):
    """A payment's refunds, newest first."""

    data: list[RefundDocument]
    has_more: bool
    next_cursor: str | None


class EventDocument(BaseModel):
    """One event; `payment_id` is null where it is not about a payment."""

    id: str
    object: Literal["event"]
    type: str
    payment_id: str | None
    created_at: datetime
    detail: StepDetail


class EventPage(BaseModel):
    """Events, oldest first. Reading from `next_cursor` misses none; detect repeats by their ids."""

    data: list[EventDocument]
    has_more: bool
    next_cursor: str | None


def present_refund(refund: Movement, payment: Payment) -> dict[str, Any]:
    """The refund in the form of RefundDocument."""
    return {
        "id": refund.id,
        "object": "refund",
        "status": _SHOWN_STATUS.get(refund.status, refund.status.value),
        "outcome": _OUTCOMES[refund.status],
        "amount": refund.amount_minor,
        "currency": payment.currency,
        "payment_id": payment.id,
        "reason": refund.reason,
        "provider": payment.provider,
        "provider_ref": refund.provider_ref,
        "decline": refund.decline,
        "next_check_at": shown_time(refund.next_check_at),
        "attempts": refund.attempts,
        "created_at": shown_time(refund.created_at),
        "updated_at": shown_time(refund.updated_at),
        "links": {"self": f"/v1/refunds/{refund.id}", "payment": f"/v1/payments/{payment.id}"},
    }


def present_feed_event(event: FeedEvent) -> dict[str, Any]:
    """The event in the form of EventDocument."""
    about = event.payment_id
    return {
        "id": f"evt_{event.event_id.hex}",
        "object": "event",
        "type": event.type,
        "payment_id": None if about is None else payment_id_text(about),
        "created_at": shown_time(event.created_at),
        "detail": event.detail,
    }
