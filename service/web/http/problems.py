"""Errors as RFC 9457 problem documents; only this module assigns HTTP statuses."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from typing import Any

from flask import Flask, Response, request
from gunicorn.http.errors import NoMoreData, ParseException
from werkzeug.exceptions import HTTPException

from service import errors
from service.errors import Busy, HoldfastError, KeyInFlight, ValidationFailed
from service.observability.metrics import catalogue as metrics
from service.payments.charge.model import Payment
from service.web.http.request_scope import request_id

log = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"

# code -> (status, title). 5xx, 429 and 409 in flight mean: not accepted, the same key again is safe.
CODES: Mapping[str, tuple[int, str]] = {
    "invalid_json": (400, "The body is not valid JSON"),
    "idempotency_key_missing": (400, "An Idempotency-Key header is needed"),
    "signature_invalid": (400, "The signature does not match"),
    "header_repeated": (400, "A single-value header is repeated"),
    "bad_request": (400, "The request cannot be read"),
    "unauthenticated": (401, "An API key is needed"),
    "card_declined": (402, "The card was declined"),
    "request_refused": (402, "The provider refused the request without asking a bank"),
    "forbidden": (403, "The API key does not allow this"),
    "not_found": (404, "Not found"),
    "method_not_allowed": (405, "Method not allowed"),
    "request_timeout": (408, "The request did not arrive in time"),
    "idempotency_key_in_flight": (409, "The first call with this key is in progress"),
    "wrong_state": (409, "The payment's status does not allow this"),
    "preflight_refused": (409, "The drill cannot start now"),
    "body_too_large": (413, "The body is too large"),
    "uri_too_long": (414, "The address is too long"),
    "expectation_failed": (417, "The expectation cannot be met"),
    "validation_failed": (422, "A field is wrong"),
    "amount_not_representable": (422, "The provider cannot charge this amount"),
    "card_data_refused": (422, "Card numbers are not accepted"),
    "idempotency_key_reused": (422, "The key was used with another request"),
    "rate_limited": (429, "Too many requests with this key"),
    "headers_too_large": (431, "The headers are too large"),
    "internal_error": (500, "Internal error"),
    "not_implemented": (501, "The transfer coding is not understood"),
    "db_pool_exhausted": (503, "No database connection was free in time"),
    "database_unavailable": (503, "The database does not answer"),
    "provider_unavailable": (503, "The payment provider is down"),
    "bulkhead_full": (503, "Too many payments are waiting for the provider"),
    "deadline_exceeded": (503, "The deadline passed"),
    "acceptance_unknown": (503, "Unknown whether it was accepted"),
}
_HTTP_CODES = {
    400: "bad_request",
    404: "not_found",
    405: "method_not_allowed",
    413: "body_too_large",
    414: "uri_too_long",
}


def problem_document(
    code: str,
    detail: str,
    *,
    request_id: str,
    retry_safe: bool | None = None,
    stage: str = "not_sent",
    payment_id: str | None = None,
    **more: Any,
) -> tuple[int, bytes]:
    """The status and the body for `code`; `detail` must contain nothing of the input."""
    status, title = CODES[code]
    document = {
        "type": f"/docs#{code}",
        "title": title,
        "status": status,
        "detail": detail,
        "instance": f"urn:holdfast:request:{request_id}",
        "code": code,
        "retry_safe": _is_retry_safe(code) if retry_safe is None else retry_safe,
        "stage": stage,
        "payment_id": payment_id,
        "request_id": request_id,
        **more,
    }
    return status, json.dumps(document).encode() + b"\n"


def _is_retry_safe(code: str) -> bool:
    status, _ = CODES[code]
    return status >= 500 or status in (408, 429) or code == "idempotency_key_in_flight"


def declined(payment: Payment) -> Response:
    """402: final, and the payment can be read at Location."""
    status, body = problem_document(
        refusal_code(payment.decline),
        "The payment provider refused the payment.",
        request_id=request_id(),
        stage="answered",
        payment_id=payment.id,
        decline=payment.decline,
    )
    answer = Response(body, status, content_type=MEDIA_TYPE)
    answer.headers["Location"] = f"/v1/payments/{payment.id}"
    return answer


def refusal_code(decline: Mapping[str, str] | None) -> str:
    """The problem code: a card's decline, or a request that the provider refused."""
    is_request = decline is not None and decline.get("type") == "request"
    return "request_refused" if is_request else "card_declined"


def register_problems(app: Flask) -> None:
    """Answer every error of the application with a problem document; call it before routes."""
    # An unusual path is a 404, not a redirect that repeats the input.
    app.url_map.merge_slashes = False
    app.register_error_handler(HoldfastError, _from_ours)
    app.register_error_handler(HTTPException, _from_http)
    app.register_error_handler(ParseException, _from_parser)
    app.register_error_handler(NoMoreData, _from_parser)
    app.register_error_handler(Exception, _from_bug)


def _from_ours(error: HoldfastError) -> Response:
    more: dict[str, Any] = {}
    if isinstance(error, ValidationFailed):
        more["fields"] = error.fields
    if isinstance(error, errors.PreflightRefused):
        more["reasons"] = error.reasons
    # A Busy without a specific code still promises that no request was sent.
    code = error.code if error.code != "internal_error" else "deadline_exceeded"
    status, body = problem_document(
        code,
        error.detail,
        request_id=request_id(),
        stage="sent_unknown" if isinstance(error, errors.AcceptanceUnknown) else "not_sent",
        payment_id=error.payment_id,
        **more,
    )
    answer = Response(body, status, content_type=MEDIA_TYPE)
    if isinstance(error, Busy):
        answer.headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_s)))
    if isinstance(error, KeyInFlight) and error.payment_id is not None:
        answer.headers["Location"] = f"/v1/payments/{error.payment_id}"
    if isinstance(error, errors.Unauthenticated):
        answer.headers["WWW-Authenticate"] = 'Bearer realm="holdfast"'
    if status in (429, 503) and code in metrics.SHED_REASONS:
        metrics.requests_shed_total.labels(code).inc()
        log.warning("request.refused", extra={"code": code, "detail": error.detail})
    return answer


def _from_http(error: HTTPException) -> Response:
    other = "bad_request" if 400 <= (error.code or 500) < 500 else "internal_error"
    code = _HTTP_CODES.get(error.code or 500, other)
    _, title = CODES[code]
    status, body = problem_document(code, f"{title}.", request_id=request_id())
    answer = Response(body, status, content_type=MEDIA_TYPE)
    for name, value in error.get_headers(request.environ):
        if name == "Allow":
            answer.headers[name] = value
    return answer


def _from_parser(_error: Exception) -> Response:
    # Our worker frames each body before a thread gets it; other workers detect errors while reading.
    status, body = problem_document(
        "bad_request", "The body's framing is not valid HTTP.", request_id=request_id()
    )
    return Response(body, status, content_type=MEDIA_TYPE, headers={"Connection": "close"})


def _from_bug(error: Exception) -> Response:
    # An unexpected error is logged in full; the caller learns only that it is internal. With or
    # without a stored claim, the same idempotency key cannot charge twice.
    log.error("request.failed", exc_info=error)
    status, body = problem_document(
        "internal_error",
        "An internal error occurred; the same idempotency key is safe.",
        request_id=request_id(),
        stage="not_sent" if request.method in ("GET", "HEAD") else "sent_unknown",
    )
    return Response(body, status, content_type=MEDIA_TYPE)
