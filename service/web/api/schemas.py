"""Requests and answers over REST as pydantic models: checked on arrival, shown in OpenAPI."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from service.payments.charge.model import UNSETTLED as UNSETTLED
from service.payments.charge.model import Payment, Status
from service.payments.settling.late_store import Dispute
from service.providers.base import PayerAction
from service.web.api.fields import (
    PLAIN,
    AmountMinor,
    CurrencyCode,
    Metadata,
    Moment,
    Token,
    shown_time,
)
from service.web.http.problem_schemas import Decline

# The database's `accepted` and `sending` have these names for callers.
_SHOWN_STATUS = {Status.ACCEPTED: "queued", Status.SENDING: "processing"}
_OUTCOMES = {
    Status.SUCCEEDED: "succeeded",
    Status.REQUIRES_CAPTURE: "succeeded",
    Status.ACCEPTED: "pending",
    Status.SENDING: "pending",
    Status.REQUIRES_ACTION: "pending",
    Status.DECLINED: "declined",
    Status.UNKNOWN: "unknown",
    Status.NEEDS_REVIEW: "unknown",
    Status.NOT_EXECUTED: "not_executed",
    Status.CANCELED: "not_executed",
    Status.EXPIRED: "not_executed",
}

PaymentStatus = Literal[
    "queued",
    "processing",
    "succeeded",
    "requires_capture",
    "requires_action",
    "declined",
    "unknown",
    "not_executed",
    "needs_review",
    "canceled",
    "expired",
]


class CreatePayment(BaseModel):
    """A payment to create."""

    model_config = ConfigDict(strict=True, extra="forbid", hide_input_in_errors=True)

    amount: AmountMinor
    currency: CurrencyCode
    payment_method: Annotated[Token, Field(examples=["pm_card_visa"])]
    reference: Annotated[
        str | None,
        Field(
            min_length=1,
            max_length=255,
            pattern=PLAIN,
            description="Your own reference; the list can be filtered by it.",
        ),
    ] = None
    capture_method: Annotated[
        Literal["automatic", "manual"],
        Field(description="`manual` only reserves the money until a capture or a void."),
    ] = "automatic"
    customer: Token | None = None
    metadata: Metadata = Field(default_factory=dict)
    on_outage: Annotated[
        Literal["queue", "reject"],
        Field(
            description="While the provider is down: store the payment and send it later, or refuse it."
        ),
    ] = "queue"
    expires_at: Annotated[
        Moment | None, Field(description="A payment still queued at this time expires unsent.")
    ] = None


class PaymentQuery(BaseModel):
    """The filter and the page of the payments to list."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    status: PaymentStatus | None = None
    reference: Annotated[str | None, Field(min_length=1, max_length=255, pattern=PLAIN)] = None
    created_gte: Moment | None = None
    cursor: Annotated[
        str | None,
        Field(
            pattern=r"^[0-9]{1,17}-[0-9a-f]{32}$", description="`next_cursor` of the previous page"
        ),
    ] = None
    limit: Annotated[int, Field(ge=1, le=100)] = 20

    @property
    def statuses(self) -> list[Status] | None:
        """The stored statuses that are shown as the requested one."""
        if self.status is None:
            return None
        return [status for status in Status if shown_status(status) == self.status]


class Attempt(BaseModel):
    """One call to the provider."""

    n: int
    op: str
    stage: Literal["not_sent", "sent_unknown", "answered"]
    error: str | None
    ms: int


class Links(BaseModel):
    """Addresses of related resources."""

    model_config = ConfigDict(populate_by_name=True)

    itself: Annotated[str, Field(alias="self")]
    timeline: str


class DisputeDocument(BaseModel):
    """A payer's complaint to their bank, which holds the money until its decision."""

    model_config = ConfigDict(extra="forbid")

    id: Annotated[str, Field(description="The provider's own reference.")]
    object: Literal["dispute"]
    amount: int
    currency: str
    reason: Annotated[str, Field(description="The provider's word: fraudulent, duplicate ..")]
    status: Annotated[
        str,
        Field(description="The provider's word: needs_response, under_review, won, lost .."),
    ]
    opened_at: datetime
    updated_at: datetime


class PaymentDocument(BaseModel):
    """The current state of a payment."""

    model_config = ConfigDict(extra="forbid")

    id: Annotated[str, Field(pattern="^pay_[0-9a-f]{32}$")]
    object: Literal["payment"]
    status: PaymentStatus
    outcome: Annotated[
        Literal["succeeded", "pending", "declined", "not_executed", "unknown"],
        Field(description="The known state of the money; `unknown`: a look-up is in progress."),
    ]
    amount: int
    currency: str
    amount_captured: int
    amount_refunded: int
    disputes: Annotated[
        list[DisputeDocument],
        Field(description="Oldest first. A payment stays `succeeded` after any refund."),
    ]
    payment_method: str
    capture_method: Literal["automatic", "manual"]
    customer: str | None
    metadata: dict[str, str]
    on_outage: Literal["queue", "reject"]
    expires_at: datetime | None
    provider: str
    provider_ref: str | None
    reference: str | None
    decline: Decline | None
    next_action: Annotated[
        dict[str, Any] | None,
        Field(
            description=(
                "The payer's next action. Complete only in the answer of `POST /v1/payments`;"
                " elsewhere `hidden` replaces its secrets."
            )
        ),
    ]
    next_check_at: datetime | None
    attempts: list[Attempt]
    created_at: datetime
    updated_at: datetime
    links: Links


class CreatedPayment(PaymentDocument):
    """A payment in the answer to its creator, also for a repeat of the same key."""

    client_secret: Annotated[
        str | None,
        Field(
            description=(
                "Finishes 3-D Secure in the payer's browser: present while the payment is"
                " `requires_action`, only in this answer, and never stored. Null: the provider"
                " gave no answer; send the same key again."
            )
        ),
    ] = None


class PaymentPage(BaseModel):
    """Payments, newest first."""

    data: list[PaymentDocument]
    has_more: bool
    next_cursor: str | None


def shown_status(status: Status) -> str:
    """The status under its name in the REST contract."""
    return _SHOWN_STATUS.get(status, status.value)


def present(payment: Payment, disputes: Sequence[Dispute]) -> dict[str, Any]:
    """The payment as callers see it, like PaymentDocument."""
    path = f"/v1/payments/{payment.id}"
    return {
        "id": payment.id,
        "object": "payment",
        "status": shown_status(payment.status),
        "outcome": _OUTCOMES[payment.status],
        "amount": payment.amount_minor,
        "currency": payment.currency,
        "amount_captured": payment.amount_captured_minor,
        "amount_refunded": payment.amount_refunded_minor,
        "disputes": [_present_dispute(dispute) for dispute in disputes],
        "payment_method": payment.payment_method,
        "capture_method": payment.capture_method,
        "customer": payment.customer,
        "metadata": payment.metadata,
        "on_outage": payment.on_outage,
        "expires_at": shown_time(payment.expires_at),
        "provider": payment.provider,
        "provider_ref": payment.provider_ref,
        "reference": payment.reference,
        "decline": payment.decline,
        "next_action": payment.next_action,
        "next_check_at": shown_time(payment.next_check_at),
        "attempts": payment.attempts,
        "created_at": shown_time(payment.created_at),
        "updated_at": shown_time(payment.updated_at),
        "links": {"self": path, "timeline": f"{path}/timeline"},
    }


def _present_dispute(dispute: Dispute) -> dict[str, Any]:
    return {
        "id": dispute.dispute_ref,
        "object": "dispute",
        "amount": dispute.amount_minor,
        "currency": dispute.currency,
        "reason": dispute.reason,
        "status": dispute.status,
        "opened_at": shown_time(dispute.opened_at),
        "updated_at": shown_time(dispute.updated_at),
    }


def present_created(
    payment: Payment, action: PayerAction | None, disputes: Sequence[Dispute]
) -> dict[str, Any]:
    """The payment in the form of CreatedPayment: with the data that the payer needs."""
    document = present(payment, disputes)
    if payment.status is Status.REQUIRES_ACTION:
        document["client_secret"] = None if action is None else action.client_secret
    if action is not None:
        document["next_action"] = dict(action.next_action)
    return document
