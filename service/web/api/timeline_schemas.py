"""The timeline of a payment over REST, as pydantic models: every step, oldest first."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from service.payments.charge.model import Event
from service.web.api.fields import shown_time


class StepDetail(BaseModel):
    """The duration and result of a step; a step has only the fields that apply to it, and may have more."""

    model_config = ConfigDict(extra="allow")

    op: Annotated[str | None, Field(description="The call: prepare, confirm, look_up ...")] = None
    attempt: Annotated[
        int | None, Field(description="The number of the try; `n` in `attempts`.")
    ] = None
    stage: Literal["not_sent", "sent_unknown", "answered"] | None = None
    outcome: str | None = None
    error: Annotated[str | None, Field(description="The kind of error, in one word.")] = None
    breaker: Annotated[
        str | None, Field(description="The breaker's state at the time of the call.")
    ] = None
    ms: Annotated[int | None, Field(description="The duration of the provider's call.")] = None
    pool_wait_ms: Annotated[
        float | None, Field(description="The wait for a database connection.")
    ] = None


class TimelineEvent(BaseModel):
    """One step of a payment."""

    id: str
    object: Literal["event"]
    type: str
    payment_id: str
    created_at: datetime
    detail: StepDetail


class Timeline(BaseModel):
    """Every step of a payment, oldest first."""

    data: list[TimelineEvent]


def present_event(event: Event) -> Mapping[str, Any]:
    """The event in the form of TimelineEvent."""
    return {
        "id": f"evt_{event.event_id.hex}",
        "object": "event",
        "type": event.type,
        "payment_id": f"pay_{event.payment_id.hex}",
        "created_at": shown_time(event.created_at),
        "detail": event.detail,
    }
