"""Payments over REST: parses, authenticates, calls `process_payment`, answers."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import partial
from uuid import UUID

from flask import Blueprint, Response, request

from service.errors import KeyInFlight, KeyReused, NotFound, RateLimited
from service.ids import parse_id
from service.observability.metrics import catalogue as metrics
from service.payments.charge.model import (
    UNSETTLED,
    ChargeRequest,
    Payment,
    Status,
    fingerprint,
)
from service.payments.settling.late_store import Dispute
from service.providers.base import PayerAction
from service.resilience.deadline import Deadline
from service.web.api.cursors import cursor_after, parse_cursor
from service.web.api.plane import DataPlane, data_plane
from service.web.api.schemas import (
    CreatedPayment,
    CreatePayment,
    PaymentDocument,
    PaymentPage,
    PaymentQuery,
    present,
    present_created,
)
from service.web.api.timeline_schemas import Timeline, present_event
from service.web.http.answers import json_answer
from service.web.http.auth import Caller
from service.web.http.bodies import parse_object, read_body, validated
from service.web.http.idempotency import read_idempotency_key
from service.web.http.preferences import prefers_async
from service.web.http.problems import declined
from service.web.http.queries import read_query
from service.web.http.request_scope import request_deadline
from service.web.openapi.operation import (
    IDEMPOTENCY_KEY,
    IF_NONE_MATCH,
    PREFER_ASYNC,
    PREFER_WAIT,
    Operation,
    documented,
)

# Retry-After of an open payment; the reconciler's first look-up is then over.
ASK_AGAIN_S = "2"
# Open payments are counted every 5 s.
TOO_MANY_OPEN_RETRY_S = 5.0
# Threads of a worker that may wait in `Prefer: wait=N` at once; the others keep serving.
WAITERS = 2


Disputes = Mapping[UUID, Sequence[Dispute]]


blueprint = Blueprint("payment", __name__)


@blueprint.post("/v1/payments")
@documented(
    Operation(
        summary="Create a payment, once for each idempotency key",
        scope="payments",
        body=CreatePayment,
        example={"amount": 2599, "currency": "usd", "payment_method": "pm_card_visa"},
        headers=(IDEMPOTENCY_KEY, PREFER_ASYNC),
        sends={
            200: ("Location",),
            201: ("Location",),
            202: ("Location", "Retry-After"),
            402: ("Location",),
        },
        answers={
            200: (
                "Ended without moving money: expired before it could be sent; in a replay also "
                "canceled or not_executed.",
                CreatedPayment,
            ),
            201: ("Charged, reserved, or waiting for the payer's action.", CreatedPayment),
            202: ("Durably accepted; we own it: queued, processing or unknown.", CreatedPayment),
        },
        problems=(
            *("card_declined", "request_refused", "amount_not_representable"),
            *("provider_unavailable", "bulkhead_full", "acceptance_unknown"),
        ),
    )
)
def create_payment() -> Response:
    plane, deadline = data_plane(), request_deadline()
    caller = plane.authenticate("payments", deadline)
    if caller.has_too_many_open:
        raise RateLimited(
            "Your account has too many open payments; nothing was stored.",
            retry_after_s=TOO_MANY_OPEN_RETRY_S,
        )
    charge = _read_charge(caller)
    try:
        payment, is_new = plane.handler.process_payment(charge, deadline)
    except KeyInFlight:
        metrics.idempotent_requests_total.labels("in_flight").inc()
        raise
    except KeyReused:
        metrics.idempotent_requests_total.labels("mismatch").inc()
        raise
    metrics.idempotent_requests_total.labels("new" if is_new else "replayed").inc()
    disputes = () if is_new else plane.late.disputes_about(payment, deadline)
    return _created(
        payment,
        plane.handler.payer_action(payment, deadline),
        disputes,
        is_new=is_new,
    )


@blueprint.get("/v1/payments")
@documented(
    Operation(
        summary="List payments, newest first",
        scope="read",
        query=PaymentQuery,
        answers={200: ("A page of payments", PaymentPage)},
    )
)
def list_payments() -> Response:
    plane, deadline = data_plane(), request_deadline()
    caller = plane.authenticate("read", deadline)
    query = read_query(PaymentQuery)
    # One more than the limit shows whether there is another page.
    payments = plane.store.list(
        caller.merchant_id,
        deadline,
        statuses=query.statuses,
        reference=query.reference,
        created_gte=query.created_gte,
        before=parse_cursor(query.cursor),
        limit=query.limit + 1,
    )
    page = payments[: query.limit]
    has_more = len(payments) > query.limit
    disputes = _disputes_of(plane, page, deadline)
    return json_answer(
        {
            "data": [present(one, disputes.get(one.payment_id, ())) for one in page],
            "has_more": has_more,
            "next_cursor": cursor_after(page[-1]) if has_more else None,
        }
    )


@blueprint.get("/v1/payments/<payment_id>")
@documented(
    Operation(
        summary="Read a payment",
        scope="read",
        headers=(PREFER_WAIT, IF_NONE_MATCH),
        sends={200: ("ETag",), 304: ("ETag",)},
        answers={
            200: ("The current state of the payment, with its ETag", PaymentDocument),
            304: ("Unchanged.", None),
        },
    )
)
def get_payment(payment_id: str) -> Response:
    plane, deadline = data_plane(), request_deadline()
    caller = plane.authenticate("read", deadline)
    identifier = _parse_payment_id(payment_id)
    look = partial(plane.store.get, caller.merchant_id, identifier)
    payment, has_waited = plane.waiting.until_settled(look, deadline)
    if payment is None:
        raise _no_such_payment()
    disputes = plane.late.disputes_about(payment, deadline)
    answer = _with_etag(json_answer(present(payment, disputes)))
    if payment.status in UNSETTLED:
        # A caller is interested: look it up soon, ahead of the schedule.
        plane.store.nudge(caller.merchant_id, identifier, deadline)
        answer.headers["Retry-After"] = ASK_AGAIN_S
    if has_waited:
        answer.headers["Preference-Applied"] = "wait"
    return answer


@blueprint.get("/v1/payments/<payment_id>/timeline")
@documented(
    Operation(
        summary="Every step of a payment",
        scope="read",
        answers={200: ("The steps, oldest first", Timeline)},
    )
)
def get_timeline(payment_id: str) -> Response:
    plane, deadline = data_plane(), request_deadline()
    caller = plane.authenticate("read", deadline)
    identifier = _parse_payment_id(payment_id)
    events = plane.store.timeline(caller.merchant_id, identifier, deadline)
    # Every payment has an event from its creation, until the months of its events are detached.
    if not events and plane.store.get(caller.merchant_id, identifier, deadline) is None:
        raise _no_such_payment()
    return json_answer({"data": [present_event(event) for event in events]})


def _disputes_of(plane: DataPlane, payments: Sequence[Payment], deadline: Deadline) -> Disputes:
    """Only for payments with moved money: no other can have one."""
    paid = [one for one in payments if one.amount_captured_minor > 0]
    if not paid:
        return {}
    ids = [payment.payment_id for payment in paid]
    return plane.late.disputes_of(paid[0].merchant_id, ids, deadline)


def _read_charge(caller: Caller) -> ChargeRequest:
    idempotency_key = read_idempotency_key()
    body = validated(CreatePayment, parse_object(read_body()))
    return ChargeRequest(
        merchant_id=caller.merchant_id,
        idempotency_key=idempotency_key,
        # Without fields at their default: a field of a later version must not make the retry of an
        # earlier request look like another request.
        fingerprint=fingerprint(
            "POST", "/v1/payments", body.model_dump(mode="json", exclude_defaults=True)
        ),
        amount_minor=body.amount,
        currency=body.currency,
        payment_method=body.payment_method,
        reference=body.reference,
        capture_method=body.capture_method,
        customer=body.customer,
        metadata=body.metadata,
        on_outage=body.on_outage,
        expires_at=body.expires_at,
        respond_async=prefers_async(),
    )


def _created(
    payment: Payment, action: PayerAction | None, disputes: Sequence[Dispute], *, is_new: bool
) -> Response:
    """The current representation; the status is the promise that goes with it."""
    if payment.status is Status.DECLINED:
        answer = declined(payment)
    else:
        answer = json_answer(present_created(payment, action, disputes), _promise(payment))
        answer.headers["Location"] = f"/v1/payments/{payment.id}"
    if payment.status in UNSETTLED:
        answer.headers["Retry-After"] = ASK_AGAIN_S
    if not is_new:
        answer.headers["Idempotent-Replayed"] = "true"
    return answer


def _promise(payment: Payment) -> int:
    if payment.status in UNSETTLED:
        return 202
    # A final payment without moved money is no failure of the call: 200, with the status.
    return 200 if payment.is_terminal and payment.status is not Status.SUCCEEDED else 201


def _parse_payment_id(text: str) -> UUID:
    payment_id = parse_id(text, "pay_")
    if payment_id is None:
        raise _no_such_payment()
    return payment_id


def _no_such_payment() -> NotFound:
    return NotFound("There is no such payment.")


def _with_etag(answer: Response) -> Response:
    """Add the payment's ETag; 304 without a body when the caller has this state already."""
    etag = hashlib.blake2b(answer.get_data(), digest_size=12).hexdigest()
    answer.set_etag(etag)
    if "If-None-Match" in request.headers and etag in request.if_none_match:
        answer.status_code = 304
        answer.set_data(b"")
    return answer
