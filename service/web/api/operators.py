"""An operator's actions on what is in doubt: look a payment up now, or record an outcome."""

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
from service.payments.movements.model import REFUND_PREFIX, Kind, Movement, MovementStatus
from service.payments.movements.resolve import OperatorFinding
from service.resilience.deadline import Deadline
from service.web.api.fields import PLAIN
from service.web.api.movement_schemas import RefundDocument, present_refund
from service.web.api.plane import DataPlane, data_plane
from service.web.api.schemas import PaymentDocument, present
from service.web.http.answers import json_answer
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


class MovementResolution(Resolution):
    """An operator's finding about one capture, void or refund, and its evidence."""

    outcome: Annotated[
        Literal["succeeded", "declined", "not_executed"],
        Field(
            description="`succeeded` counts its whole amount; the others end it as `declined` and"
            " free its amount."
        ),
    ]


_MOVEMENT_EXAMPLE = {"outcome": "succeeded", "evidence": "payout report of 3 March, line 12"}

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


@blueprint.post("/v1/refunds/<refund_id>/resolve")
@documented(
    Operation(
        summary="Record the outcome of a refund in doubt",
        scope="operator",
        body=MovementResolution,
        answers={200: ("The refund with its final status", RefundDocument)},
        example=_MOVEMENT_EXAMPLE,
        problems=("wrong_state",),
    )
)
def resolve_refund(refund_id: str) -> Response:
    plane, deadline = data_plane(), request_deadline()
    caller = plane.authenticate("operator", deadline)
    resolution = validated(MovementResolution, parse_object(read_body()))
    movement_id = parse_id(refund_id, REFUND_PREFIX)
    found = plane.movements.get(caller.merchant_id, movement_id, deadline) if movement_id else None
    if found is None or found[0].kind is not Kind.REFUND:
        raise NotFound("There is no such refund.")
    return json_answer(present_refund(*_resolve(plane, caller, found, resolution, deadline)))


@blueprint.post("/v1/payments/<payment_id>/capture/resolve")
@documented(
    Operation(
        summary="Record the outcome of a payment's capture in doubt",
        scope="operator",
        body=MovementResolution,
        answers={200: ("The payment with its status after the finding", PaymentDocument)},
        example=_MOVEMENT_EXAMPLE,
        problems=("wrong_state",),
    )
)
def resolve_capture(payment_id: str) -> Response:
    return _resolve_of_payment(Kind.CAPTURE, payment_id)


@blueprint.post("/v1/payments/<payment_id>/void/resolve")
@documented(
    Operation(
        summary="Record the outcome of a payment's void in doubt",
        scope="operator",
        body=MovementResolution,
        answers={200: ("The payment with its status after the finding", PaymentDocument)},
        example=_MOVEMENT_EXAMPLE,
        problems=("wrong_state",),
    )
)
def resolve_void(payment_id: str) -> Response:
    return _resolve_of_payment(Kind.VOID, payment_id)


def _resolve_of_payment(kind: Kind, payment_id: str) -> Response:
    plane, deadline = data_plane(), request_deadline()
    caller = plane.authenticate("operator", deadline)
    resolution = validated(MovementResolution, parse_object(read_body()))
    payment = _find(plane, caller, payment_id, deadline)
    found = plane.movements.get_end(caller.merchant_id, payment.payment_id, kind, deadline)
    if found is None:
        raise NotFound(f"There is no {kind.value} of this payment.")
    _, resolved = _resolve(plane, caller, found, resolution, deadline)
    return json_answer(present(resolved, plane.late.disputes_about(resolved, deadline)))


def _resolve(
    plane: DataPlane,
    caller: Caller,
    found: tuple[Movement, Payment],
    resolution: MovementResolution,
    deadline: Deadline,
) -> tuple[Movement, Payment]:
    """Write the finding about one capture, void or refund; raises WrongState."""
    movement, payment = found
    kind = movement.kind.value
    finding = OperatorFinding(resolution.outcome, resolution.evidence, caller.key_id)
    resolved = plane.movements.resolve(movement, finding, deadline, actor=caller.actor())
    if resolved is None and movement.status in _IN_DOUBT:
        raise WrongState(_UNDER_WAY, payment_id=payment.id)
    if resolved is None:
        raise WrongState(
            f"Only a {kind} in doubt (unknown, needs_review) can be resolved.",
            payment_id=payment.id,
        )
    log.warning(
        "movement.resolved",
        extra={
            "payment_id": payment.id,
            "movement_id": movement.id,
            "kind": kind,
            "outcome": resolution.outcome,
            "key_id": caller.key_id,
        },
    )
    return resolved


_IN_DOUBT = (MovementStatus.UNKNOWN, MovementStatus.NEEDS_REVIEW)


def _find(plane: DataPlane, caller: Caller, text: str, deadline: Deadline) -> Payment:
    payment_id = parse_id(text, "pay_")
    payment = plane.store.get(caller.merchant_id, payment_id, deadline) if payment_id else None
    if payment is None:
        raise NotFound("There is no such payment.")
    return payment
