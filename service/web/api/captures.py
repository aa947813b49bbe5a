"""Captures and voids over REST: a capture takes reserved money, a void releases it."""

from __future__ import annotations

from flask import Blueprint, Response
from pydantic import BaseModel

from service.errors import ValidationFailed
from service.payments.movements.model import Kind, MovementRequest
from service.resilience.deadline import Deadline
from service.web.api.movement_schemas import CapturePayment
from service.web.api.movements import MOVEMENT_PROBLEMS, answer_moved, move, move_request
from service.web.api.plane import DataPlane, data_plane
from service.web.api.schemas import PaymentDocument, present
from service.web.http.bodies import parse_object, read_body, validated
from service.web.http.request_scope import request_deadline
from service.web.openapi.operation import IDEMPOTENCY_KEY, Operation, documented

blueprint = Blueprint("captures", __name__)


def _operation(summary: str, body: type[BaseModel] | None) -> Operation:
    return Operation(
        summary=summary,
        scope="payments",
        body=body,
        example={"amount": 2000} if body is not None else None,
        headers=(IDEMPOTENCY_KEY,),
        sends={200: ("Location",), 202: ("Location", "Retry-After"), 402: ("Location",)},
        answers={
            200: ("Done; the current state of the payment", PaymentDocument),
            202: ("Durably accepted; we own it. The current state of the payment", PaymentDocument),
        },
        problems=MOVEMENT_PROBLEMS,
    )


@blueprint.post("/v1/payments/<payment_id>/capture")
@documented(
    _operation("Capture the reserved money, or a part; the rest is released", CapturePayment)
)
def capture_payment(payment_id: str) -> Response:
    plane, deadline = data_plane(), request_deadline()
    caller = plane.authenticate("payments", deadline)
    body = validated(CapturePayment, parse_object(read_body()))
    request = move_request(caller, payment_id, Kind.CAPTURE, body, amount_minor=body.amount)
    return _answer(plane, request, deadline)


@blueprint.post("/v1/payments/<payment_id>/void")
@documented(_operation("Release the reserved money, or cancel an unsent payment", None))
def void_payment(payment_id: str) -> Response:
    plane, deadline = data_plane(), request_deadline()
    caller = plane.authenticate("payments", deadline)
    _refuse_fields(read_body())
    request = move_request(caller, payment_id, Kind.VOID, None)
    return _answer(plane, request, deadline)


def _answer(plane: DataPlane, request: MovementRequest, deadline: Deadline) -> Response:
    movement, payment, is_new = move(plane.movement_handler, request, deadline)
    return answer_moved(
        movement,
        present(payment, plane.late.disputes_about(payment, deadline)),
        status=200,
        payment=payment,
        location=f"/v1/payments/{payment.id}",
        is_new=is_new,
    )


def _refuse_fields(body: bytes) -> None:
    """A void is always complete: a body with an amount or any other field is a mistake."""
    if body and parse_object(body):
        raise ValidationFailed(
            "Refused: a void takes no fields.",
            fields=[{"field": "body", "reason": "must be empty"}],
        )
