"""The scope of every request: its id, its deadline, its metrics, and the headers of its answer."""

from __future__ import annotations

import functools
import logging
import os
import re
from collections.abc import Callable, Iterable
from time import monotonic
from typing import TYPE_CHECKING, Any

from flask import Flask, Response, request

from service.errors import HeaderRepeated, ValidationFailed
from service.observability import logs, tracing
from service.observability.card_numbers import holds_card_number
from service.observability.metrics import catalogue as metrics
from service.resilience.deadline import Deadline

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

log = logging.getLogger(__name__)

# Written into the WSGI environment: when the worker had the request's first bytes, so that the time
# it waited for a thread is part of its budget.
ARRIVED_S = "holdfast.arrived_s"
_REQUEST_ID = "holdfast.request_id"
_BUDGET_S = "holdfast.budget_s"
_ROUTE = "holdfast.route"
_IS_DRILL = "holdfast.is_drill"

_SANE_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_WHOLE_MS = re.compile(r"0{0,8}[1-9][0-9]{0,8}")
_PAYMENTS_ROUTE = "/v1/payments"
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
# Answers slower than this are logged, whatever their status.
SLOW_S = 1.0

# JSON must never be framed, sniffed, stored by a proxy, or load anything.
SECURITY_HEADERS = (
    ("X-Content-Type-Options", "nosniff"),
    ("Cache-Control", "no-store"),
    ("Referrer-Policy", "no-referrer"),
)
STRICT_CSP = "default-src 'none'; frame-ancestors 'none'"


class RequestScope:
    """WSGI middleware around the application; `install` puts it on."""

    def __init__(
        self,
        application: Callable[[WSGIEnvironment, StartResponse], Iterable[bytes]],
        *,
        request_timeout_s: float,
    ) -> None:
        self._application = application
        self._request_timeout_s = request_timeout_s

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        started_s = environ.setdefault(ARRIVED_S, monotonic())
        environ[_BUDGET_S] = self._request_timeout_s
        environ[_REQUEST_ID] = identifier = _accepted_id(environ) or new_request_id()
        statuses: list[str] = []

        def answer(status: str, headers: list[tuple[str, str]], *exc_info: Any) -> Any:
            statuses.append(status[:3])
            headers.append(("X-Request-Id", identifier))
            headers.extend(SECURITY_HEADERS)
            return start_response(status, headers, *exc_info)

        metrics.http_requests_in_flight.inc()
        try:
            trace = tracing.continue_trace(environ.get("HTTP_TRACEPARENT"))
            with trace, logs.bind(request_id=identifier):
                body = self._application(environ, answer)
                self._tell(environ, statuses[-1], monotonic() - started_s)
                return body
        finally:
            metrics.http_requests_in_flight.dec()

    def _tell(self, environ: WSGIEnvironment, status: str, took_s: float) -> None:
        route = environ.get(_ROUTE, "unmatched")
        method = count_answer(
            route,
            environ["REQUEST_METHOD"],
            status,
            took_s,
            is_drill=_IS_DRILL in environ,
        )
        failed = status in ("500", "503")
        level = logging.WARNING if failed or took_s > SLOW_S else logging.DEBUG
        if log.isEnabledFor(level):
            log.log(
                level,
                "http.answered",
                extra={
                    "route": route,
                    "method": method,
                    "status": int(status),
                    "ms": round(took_s * 1000, 1),
                },
            )


def install(app: Flask, *, request_timeout_s: float) -> None:
    """Wrap the application; a caller may lower `request_timeout_s`, never raise it."""
    app.wsgi_app = RequestScope(  # type: ignore[method-assign]
        app.wsgi_app, request_timeout_s=request_timeout_s
    )
    app.after_request(_note_route)


def request_id() -> str:
    """The id of the current request, for the caller and the logs."""
    identifier: str = request.environ[_REQUEST_ID]
    return identifier


def request_deadline() -> Deadline:
    """The deadline of the answer, counted from the request's arrival; raises when it is past."""
    environ = request.environ
    budget_s: float = environ[_BUDGET_S]
    wanted_ms = environ.get("HTTP_X_REQUEST_TIMEOUT_MS")
    if wanted_ms is not None:
        if "," in wanted_ms:
            raise HeaderRepeated("The X-Request-Timeout-Ms header must stand once.")
        if not _WHOLE_MS.fullmatch(wanted_ms):
            raise ValidationFailed(
                "Refused: X-Request-Timeout-Ms.",
                fields=[{"field": "X-Request-Timeout-Ms", "reason": "must be 1 to 999999999"}],
            )
        budget_s = min(budget_s, int(wanted_ms) / 1000)
    deadline = Deadline(environ[ARRIVED_S] + budget_s)
    deadline.require()
    return deadline


def new_request_id() -> str:
    """Random; begins with letters, so that it is never mistaken for a number."""
    return f"req_{os.urandom(12).hex()}"


def note_drill() -> None:
    """Mark the current request as a drill's: it counts, but in no service level."""
    request.environ[_IS_DRILL] = True


def count_answer(
    route: str, method: str, status: str, took_s: float, *, is_drill: bool = False
) -> str:
    """Count one answer, of the application or the worker; returns the method from a closed set."""
    method = method if method in _METHODS else "OTHER"
    _answers(route, method, status).inc()
    _durations(route, method).observe(took_s, tracing.exemplar())
    if route == _PAYMENTS_ROUTE and method == "POST" and not is_drill:
        # A refusal with a reason keeps the promise; an unexpected error does not.
        good = status != "500"
        (metrics.payments_good_total if good else metrics.payments_bad_total).inc()
    return method


# Binding a label set costs more than the count itself. Routes, methods and statuses are closed sets.
@functools.lru_cache(maxsize=1024)
def _answers(route: str, method: str, status: str) -> Any:
    return metrics.http_requests_total.labels(route, method, status)


@functools.lru_cache(maxsize=256)
def _durations(route: str, method: str) -> Any:
    return metrics.http_request_duration_seconds.labels(route, method)


def _accepted_id(environ: WSGIEnvironment) -> str | None:
    """The caller's X-Request-Id if it is safe to log and to return."""
    given = environ.get("HTTP_X_REQUEST_ID")
    if given is None or not _SANE_REQUEST_ID.fullmatch(given) or holds_card_number(given):
        return None
    return str(given)


def _note_route(answer: Response) -> Response:
    rule = request.url_rule
    if rule is not None:
        request.environ[_ROUTE] = rule.rule
    if "Content-Security-Policy" not in answer.headers:
        answer.headers["Content-Security-Policy"] = STRICT_CSP
    return answer
