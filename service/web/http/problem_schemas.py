"""The body of a refusal (RFC 9457) as a pydantic model, for OpenAPI and for tests."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field, model_validator


class Decline(BaseModel):
    """The provider's reason for a refusal; `code` is the provider's own."""

    code: str
    message: str
    type: Annotated[
        Literal["card", "request"] | None,
        Field(description="`request`: the provider refused the request itself and asked no bank."),
    ] = None
    field: Annotated[
        str | None, Field(description="Your field that the provider refused, if it named one.")
    ] = None


class WrongField(BaseModel):
    """A field that was refused; its value is never shown."""

    field: str
    reason: str


class Problem(BaseModel):
    """RFC 9457, with two facts for a payment's caller: whether the same key is safe, and the stage."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
    code: str
    retry_safe: Annotated[
        bool, Field(description="True: not accepted; send it again with the same key.")
    ]
    stage: Literal["not_sent", "sent_unknown", "answered"]
    payment_id: str | None
    request_id: str
    fields: list[WrongField] | None = None
    decline: Decline | None = None

    @model_validator(mode="after")
    def _is_refusal(self) -> Problem:
        if self.status < 400:
            raise ValueError("a problem has an error's status")
        return self
