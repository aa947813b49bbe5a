"""Refunds over REST: many for a payment, in sum never more than the captured amount."""

from __future__ import annotations

from uuid import UUID

from flask import Blueprint, Response

from service.errors import NotFound
from service.ids import parse_id
from service.payments.movements.model import REFUND_PREFIX, Kind
from service.web.api.movement_schemas import (
    CreateRefund,
    RefundDocument,
    RefundPage,
    RefundQuery,
    present_refund,
)
from service.web.api.movements import (
    MOVEMENT_PROBLEMS,
    answer_moved,
    move,
    move_request,
    parse_payment_id,
)
from service.web.api.payments import ASK_AGAIN_S
from service.web.api.plane import data_plane
from service.web.http.answers import json_answer
from service.web.http.bodies import parse_object, read_body, validated
from service.web.http.queries import read_query
from service.web.http.request_scope import request_deadline
from service.web.openapi.operation import IDEMPOTENCY_KEY, Operation, documented

blueprint = Blueprint("refunds", __name__)


@blueprint.post("/v1/payments/<payment_id>/refunds")
@documented(
    Operation(
        summary="Refund all or a part, once for each idempotency key",
        scope="refunds",
        body=CreateRefund,
        example={"amount": 500, "reason": "requested_by_customer"},
        headers=(IDEMPOTENCY_KEY,),
        sends={201: ("Location",), 202: ("Location", "Retry-After"), 402: ("Location",)},
        answers={
            201: ("Refunded.", RefundDocument),
            202: (
                "Durably accepted; we own it: queued, processing, pending or unknown.",
                RefundDocument,
            ),
        },
        problems=MOVEMENT_PROBLEMS,
    )
)
def create_refund(payment_id: str) -> Response:
    plane, deadline = data_plane(), request_deadline()
    caller = plane.authenticate("refunds", deadline)
    body = validated(CreateRefund, parse_object(read_body()))
    request = move_request(
        caller, payment_id, Kind.REFUND, body, amount_minor=body.amount, reason=body.reason
    )
    refund, payment, is_new = move(plane.movement_handler, request, deadline)
    return answer_moved(
        refund,
        present_refund(refund, payment),
        status=201,
        payment=payment,
        location=f"/v1/refunds/{refund.id}",
        is_new=is_new,
    )


@blueprint.get("/v1/payments/<payment_id>/refunds")
@documented(
    Operation(
        summary="List a payment's refunds, newest first",
        scope="read",
        query=RefundQuery,
        answers={200: ("A page of refunds", RefundPage)},
    )
)
def list_refunds(payment_id: str) -> Response:
    plane, deadline = data_plane(), request_deadline()
    caller = plane.authenticate("read", deadline)
    query = read_query(RefundQuery)
    payment = plane.store.get(caller.merchant_id, parse_payment_id(payment_id), deadline)
    if payment is None:
        raise NotFound("There is no such payment.")
    # One more than the limit shows whether there is another page.
    refunds = plane.movements.list_refunds(
        caller.merchant_id,
        payment.payment_id,
        deadline,
        before=parse_id(query.cursor, REFUND_PREFIX) if query.cursor else None,
        limit=query.limit + 1,
    )
    page = refunds[: query.limit]
    has_more = len(refunds) > query.limit
    return json_answer(
        {
            "data": [present_refund(refund, payment) for refund in page],
            "has_more": has_more,
            "next_cursor": page[-1].id if has_more else None,
        }
    )


@blueprint.get("/v1/refunds/<refund_id>")
@documented(
    Operation(
        summary="Read a refund",
        scope="read",
        answers={200: ("The current state of the refund", RefundDocument)},
    )
)
def get_refund(refund_id: str) -> Response:
    plane, deadline = data_plane(), request_deadline()
    caller = plane.authenticate("read", deadline)
    found = plane.movements.get(caller.merchant_id, _parse_refund_id(refund_id), deadline)
    if found is None or found[0].kind is not Kind.REFUND:
        raise _no_such_refund()
    refund, payment = found
    answer = json_answer(present_refund(refund, payment))
    if not refund.has_ended:
        # A caller is interested: look it up soon, ahead of the schedule.
        plane.movements.nudge(refund, deadline)
        answer.headers["Retry-After"] = ASK_AGAIN_S
    return answer


def _parse_refund_id(text: str) -> UUID:
    refund_id = parse_id(text, REFUND_PREFIX)
    if refund_id is None:
        raise _no_such_refund()
    return refund_id


def _no_such_refund() -> NotFound:
    return NotFound("There is no such refund.")
