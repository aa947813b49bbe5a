"""Refusals that never reach the application: whole HTTP answers of the worker itself."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus

from gunicorn.http import errors as http_errors

from service.web.http.problems import MEDIA_TYPE, problem_document
from service.web.http.request_scope import (
    SECURITY_HEADERS,
    STRICT_CSP,
    count_answer,
    new_request_id,
)

# The errors of gunicorn's parser, and their problem codes; the first match counts.
_PARSER_ERRORS: Mapping[type[Exception], str] = {
    http_errors.LimitRequestLine: "uri_too_long",
    http_errors.LimitRequestHeaders: "headers_too_large",
    http_errors.UnsupportedTransferCoding: "not_implemented",
    http_errors.ExpectationFailed: "expectation_failed",
    http_errors.ParseException: "bad_request",
}
_RETRY_AFTER_S = 1


def code_of(error: BaseException) -> str:
    """The problem's code for an error before or around the application."""
    for kind, code in _PARSER_ERRORS.items():
        if isinstance(error, kind):
            return code
    return "internal_error"


def refusal(code: str, detail: str, *, method: str = "OTHER", took_s: float = 0.0) -> bytes:
    """The whole answer, head and body, which is counted. The caller must close the connection."""
    request_id = new_request_id()
    status, body = problem_document(code, detail, request_id=request_id)
    count_answer("unmatched", method, str(status), took_s)
    headers = [
        ("Connection", "close"),
        ("Content-Type", MEDIA_TYPE),
        ("Content-Length", str(len(body))),
        ("X-Request-Id", request_id),
        ("Content-Security-Policy", STRICT_CSP),
        *SECURITY_HEADERS,
    ]
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        headers.append(("Retry-After", str(_RETRY_AFTER_S)))
    lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}"]
    lines += [f"{name}: {value}" for name, value in headers]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body
