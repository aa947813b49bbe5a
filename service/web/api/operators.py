"""An operator's actions on a payment in doubt: look it up now, or record its outcome."""

from __future__ import annotations

import logging
from typing import Annotated, Literal

from flask import Blueprint, Response
from pydantic import BaseModel, ConfigDict, Field

from service.errors import NotFound, WrongState
from service.ids import parse_id
from service.payments.charge.model import (
    Payment,
    Status,
)
from service.resilience.deadline import Deadline
from service.web.api.fields import PLAIN
from service.web.api.payments import json_answer
from service.web.api.plane import DataPlane, data_plane
from service.web.api.schemas import PaymentDocument, present
from service.web.http.auth import Caller
from service.web.http.bodies import parse_object, read_body, validated
from service.web.http.request_scope import request_deadline
from service.web.openapi.operation import Operation, documented

log = logging.getLogger(__name__)

_UNDER_WAY = (
    "A call about this payment is in progress; read the payment, and try again in a moment."
)


class Resolution(BaseModel):
    """An operator's finding and its evidence; stored in the payment's timeline with the operator."""

    model_config = ConfigDict(strict=True, extra="forbid", hide_input_in_errors=True)

    outcome: Annotated[
        Literal["succeeded", "declined", "not_executed"],
        Field(description="`succeeded` counts the whole amount as captured."),
    ]
    evidence: Annotated[
        str,
        Field(
            min_length=10,
            max_length=2000,
            pattern=PLAIN,
            description="A place to verify it: the provider's page, a statement, a ticket.",
        ),
    ]


blueprint = Blueprint("operators", __name__)


@blueprint.post("/v1/payments/<payment_id>/reconcile")
@documented(
    Operation(
        summary="Ask the provider about a payment and its captures, voids and refunds now",
        scope="operator",
        answers={202: ("The reconciler looks it up at once; read the payment", PaymentDocument)},
        sends={202: ("Location", "Retry-After")},
        problems=("wrong_state",),
    )
)
def reconcile_payment(payment_id: str) -> Response:
    plane, deadline = data_plane(), request_deadline()
    caller = plane.authenticate("operator", deadline)
    payment = _find(plane, caller, payment_id, deadline)
    is_settled = payment.is_terminal or payment.status is Status.REQUIRES_CAPTURE
    is_looked_at = not is_settled and plane.store.look_now(payment, deadline, actor=caller.actor())
    # A capture, void or refund can be in doubt when the payment itself is settled.
    moving = plane.movements.look_now(payment, deadline, actor=caller.actor())
    if not is_looked_at and not moving:
        if is_settled and not plane.movements.is_under_way(payment, deadline):
            raise WrongState("The payment is settled: no outcome is in doubt.")
        raise WrongState(_UNDER_WAY)
    answer = json_answer(present(payment, plane.late.disputes_about(payment, deadline)), 202)
    answer.headers["Location"] = f"/v1/payments/{payment.id}"
    answer.headers["Retry-After"] = "1"
    return answer


@blueprint.post("/v1/payments/<payment_id>/resolve")
@documented(
    Operation(
        summary="Record the outcome of a payment in doubt",
        scope="operator",
        body=Resolution,
        answers={200: ("The payment with its final status", PaymentDocument)},
        example={"outcome": "succeeded", "evidence": "bank statement of 3 March, line 12"},
        problems=("wrong_state",),
    )
)
def resolve_payment(payment_id: str) -> Response:
    plane, deadline = data_plane(), request_deadline()
    caller = plane.authenticate("operator", deadline)
    resolution = validated(Resolution, parse_object(read_body()))
    payment = _find(plane, caller, payment_id, deadline)
    if plane.movements.is_under_way(payment, deadline):
        raise WrongState(_UNDER_WAY)
    resolved = plane.store.resolve(
        payment,
        Status(resolution.outcome),
        resolution.evidence,
        caller.key_id,
        deadline,
        actor=caller.actor(),
    )
    if resolved is None and payment.status in (Status.UNKNOWN, Status.NEEDS_REVIEW):
        raise WrongState(_UNDER_WAY)
    if resolved is None:
        raise WrongState("Only a payment in doubt (unknown, needs_review) can be resolved.")
    log.warning(
        "payment.resolved",
        extra={
            "payment_id": payment.id,
            "outcome": resolution.outcome,
            "key_id": caller.key_id,
        },
    )
    return json_answer(present(resolved, plane.late.disputes_about(resolved, deadline)))


def _find(plane: DataPlane, caller: Caller, text: str, deadline: Deadline) -> Payment:
    payment_id = parse_id(text, "pay_")
    payment = plane.store.get(caller.merchant_id, payment_id, deadline) if payment_id else None
    if payment is None:
        raise NotFound("There is no such payment.")
    return payment
