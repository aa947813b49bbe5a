"""Shared by captures, voids and refunds: the idempotency key's rules, and the answer's promise."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from flask import Response
from pydantic import BaseModel

from service.errors import KeyInFlight, KeyReused, NotFound
from service.ids import parse_id
from service.observability.metrics import catalogue as metrics
from service.payments.charge.model import (
    Payment,
    fingerprint,
)
from service.payments.movements.handler import MovementHandler
from service.payments.movements.model import Kind, Movement, MovementRequest, MovementStatus
from service.resilience.deadline import Deadline
from service.web.api.payments import ASK_AGAIN_S
from service.web.http.answers import json_answer
from service.web.http.auth import Caller
from service.web.http.idempotency import read_idempotency_key
from service.web.http.problems import MEDIA_TYPE, problem_document, refusal_code
from service.web.http.request_scope import request_id

MOVEMENT_PROBLEMS = (
    *("invalid_json", "card_declined", "request_refused", "wrong_state", "body_too_large"),
    *("amount_not_representable", "acceptance_unknown"),
)
_ROUTES = {
    Kind.CAPTURE: "/v1/payments/<payment_id>/capture",
    Kind.VOID: "/v1/payments/<payment_id>/void",
    Kind.REFUND: "/v1/payments/<payment_id>/refunds",
}


def move_request(
    caller: Caller,
    payment_id: str,
    kind: Kind,
    body: BaseModel | None,
    *,
    amount_minor: int | None = None,
    reason: str | None = None,
) -> MovementRequest:
    """The request for the handler; raises KeyMissing, and NotFound for an invalid id."""
    idempotency_key = read_idempotency_key()
    identifier = parse_payment_id(payment_id)
    given = body.model_dump(mode="json", exclude_defaults=True) if body is not None else {}
    return MovementRequest(
        merchant_id=caller.merchant_id,
        payment_id=identifier,
        kind=kind,
        idempotency_key=idempotency_key,
        # The route is a template, so the body names the payment: the same key for another payment
        # is another request.
        fingerprint=fingerprint("POST", _ROUTES[kind], {**given, "payment_id": payment_id}),
        amount_minor=amount_minor,
        reason=reason,
    )


def move(
    handler: MovementHandler, request: MovementRequest, deadline: Deadline
) -> tuple[Movement, Payment, bool]:
    """Execute the request, and count the result of the idempotency key."""
    try:
        movement, payment, is_new = handler.process(request, deadline)
    except KeyInFlight:
        metrics.idempotent_requests_total.labels("in_flight").inc()
        raise
    except KeyReused:
        metrics.idempotent_requests_total.labels("mismatch").inc()
        raise
    metrics.idempotent_requests_total.labels("new" if is_new else "replayed").inc()
    return movement, payment, is_new


def answer_moved(
    movement: Movement,
    document: dict[str, Any],
    *,
    status: int,
    payment: Payment,
    location: str,
    is_new: bool,
) -> Response:
    """`document` with `status` after success, 202 while we still work on it, else 402."""
    if movement.status is MovementStatus.DECLINED:
        answer = _declined(movement, payment)
    elif movement.has_ended:
        answer = json_answer(document, status)
    else:
        answer = json_answer(document, 202)
        answer.headers["Retry-After"] = ASK_AGAIN_S
    answer.headers["Location"] = location
    if not is_new:
        answer.headers["Idempotent-Replayed"] = "true"
    return answer


def _declined(movement: Movement, payment: Payment) -> Response:
    status, body = problem_document(
        refusal_code(movement.decline),
        f"The payment provider refused the {movement.kind.value}.",
        request_id=request_id(),
        stage="answered",
        payment_id=payment.id,
        decline=movement.decline,
    )
    return Response(body, status, content_type=MEDIA_TYPE)


def parse_payment_id(text: str) -> UUID:
    """The UUID in `pay_...`; raises NotFound for anything that cannot be one of our ids."""
    payment_id = parse_id(text, "pay_")
    if payment_id is None:
        raise NotFound("There is no such payment.")
    return payment_id
