"""The blueprint `console`, on the ops plane: one page for the person on call, and its data."""

from __future__ import annotations

import http.client
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from time import monotonic
from typing import Any
from uuid import uuid4

from flask import Blueprint, Response, jsonify, render_template, request

from service.errors import NotFound, WrongState
from service.ids import parse_id
from service.observability.health.checks import HealthChecks
from service.observability.metrics.statistics import Statistics, describe_now
from service.observability.metrics.window import Window
from service.payments.charge.model import (
    Payment,
)
from service.payments.charge.store import PaymentStore
from service.payments.merchants import ALL_SCOPES, PLATFORM
from service.web.api.schemas import Timeline, present, present_event
from service.web.http.auth import Authenticator, Caller
from service.web.http.compression import compress_file
from service.web.http.request_scope import request_deadline
from service.web.openapi.operation import Operation, documented
from service.web.ops.history import History
from service.web.ops.summary import budgets, glance

# No inline script or style, no other origin, no frame around it, no text turned into markup.
CSP = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
PAYMENTS_SHOWN = 20
# The tables change slowly; computing them for each poll would cost more than it is worth.
WINDOWS_KEPT_S = 5.0
# As long as a caller of ours waits.
PAY_WAIT_S = 10.0


@dataclass(frozen=True, slots=True)
class Instance:
    """The instance that this console shows."""

    name: str
    version: str
    environment: str
    # The data plane's address for this machine.
    payments_host: str
    payments_port: int
    has_rehearsals: bool
    # The payment method that succeeds in the provider's test mode.
    test_payment_method: str


def console_blueprint(
    *,
    instance: Instance,
    history: History,
    statistics: Statistics,
    health: HealthChecks,
    store: PaymentStore,
    authenticate: Authenticator,
) -> Blueprint:
    """The page at `/`, its files, and its JSON below `/console`; payments need an operator's key."""
    blueprint = Blueprint(
        "console",
        __name__,
        template_folder="templates",
        static_folder="static/console",
        static_url_path="/console/static",
    )
    figures = _Figures(statistics)
    # A page that sees a new value talks to another process and restarts its charts.
    boot = uuid4().hex

    def operator() -> Caller:
        return authenticate("operator", request_deadline())

    @blueprint.get("/")
    @documented(
        Operation(
            summary="The console, for people",
            answers={200: ("HTML", None)},
            media_type="text/html",
            problems=("forbidden",),
        )
    )
    def page() -> str:
        return render_template("console.html", instance=instance)

    @blueprint.get("/console/state")
    @documented(
        Operation(
            summary="The console's current figures",
            answers={200: ("The figures", None)},
            problems=("forbidden",),
        )
    )
    def state() -> Response:
        after_s = request.args.get("after", 0.0, type=float)
        if request.args.get("boot") != boot:
            after_s = 0.0
        now = describe_now(Window({}, history.watch(), 0.0))
        windows, report = figures.windows(), health.report()
        return jsonify(
            {
                "boot": boot,
                "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
                "glance": glance(now, windows, report),
                "budgets": budgets(windows),
                "now": now,
                "windows": windows,
                "health": report,
                "history": history.after(after_s),
                "has_rehearsals": instance.has_rehearsals,
            }
        )

    @blueprint.get("/console/operator")
    @documented(
        Operation(summary="The calling key", scope="operator", answers={200: ("The key", None)})
    )
    def who() -> Response:
        caller = operator()
        scopes = sorted(caller.scopes, key=ALL_SCOPES.index)
        return jsonify({"key_id": caller.key_id, "mode": caller.mode, "scopes": scopes})

    @blueprint.get("/console/payments")
    @documented(
        Operation(
            summary="The newest payments", scope="operator", answers={200: ("In brief", None)}
        )
    )
    def payments() -> Response:
        caller = operator()
        newest = store.list(caller.merchant_id, request_deadline(), limit=PAYMENTS_SHOWN)
        return jsonify({"data": [_brief(payment) for payment in newest]})

    @blueprint.get("/console/payments/<payment_id>/timeline")
    @documented(
        Operation(
            summary="Every step of a payment",
            scope="operator",
            answers={200: ("The steps, oldest first", Timeline)},
        )
    )
    def timeline(payment_id: str) -> Response:
        caller, identifier = operator(), parse_id(payment_id, "pay_")
        events = (
            store.timeline(caller.merchant_id, identifier, request_deadline()) if identifier else []
        )
        if not events:
            raise NotFound("There is no such payment of this key's merchant.")
        return jsonify({"data": [present_event(event) for event in events]})

    @blueprint.post("/console/payments")
    @documented(
        Operation(
            summary="Make a test payment over the REST API",
            scope="platform",
            answers={200: ("The request and its answer", None)},
            problems=("wrong_state",),
        )
    )
    def pay() -> Response:
        caller = authenticate(PLATFORM, request_deadline())
        if caller.mode != "test":
            raise WrongState("A test payment needs a test key: this one would move real money.")
        return jsonify(_pay(instance, request.headers["Authorization"]))

    @blueprint.after_request
    def protect(answer: Response) -> Response:
        answer.headers["Content-Security-Policy"] = CSP
        answer.headers["Cross-Origin-Resource-Policy"] = "same-origin"
        # The request's scope sets `no-store` for every answer; files would have two policies.
        answer.headers.pop("Cache-Control", None)
        if request.endpoint == f"{blueprint.name}.static":
            compress_file(answer)
        return answer

    return blueprint


class _Figures:
    """The statistics of the windows, computed once for all pages that poll."""

    def __init__(self, statistics: Statistics) -> None:
        self._statistics = statistics
        self._kept: tuple[float, dict[str, Any]] = (float("-inf"), {})

    def windows(self) -> dict[str, Any]:
        kept_at_s, windows = self._kept
        if monotonic() - kept_at_s >= WINDOWS_KEPT_S:
            windows = self._statistics.report()["windows"]
            self._kept = (monotonic(), windows)
        return windows


def _brief(payment: Payment) -> dict[str, Any]:
    # The page has no place for disputes, so they are not read.
    whole = present(payment, ())
    shown = ("id", "status", "amount", "currency", "reference", "provider", "provider_ref")
    return {name: whole[name] for name in (*shown, "created_at", "updated_at")} | {
        "attempts": len(payment.attempts),
        "error": next((one["error"] for one in reversed(payment.attempts) if one["error"]), None),
    }


def _pay(instance: Instance, authorization: str) -> dict[str, Any]:
    """Make a payment over REST, like any caller, with the operator's own key."""
    key = f"console-{uuid4()}"
    body = {
        "amount": 100,
        "currency": "usd",
        "payment_method": instance.test_payment_method,
        "reference": key,
        "metadata": {"made_by": "console"},
    }
    connection = http.client.HTTPConnection(
        instance.payments_host, instance.payments_port, timeout=PAY_WAIT_S
    )
    sent = {"idempotency_key": key, "body": body}
    begun_s = monotonic()
    try:
        connection.request(
            "POST",
            "/v1/payments",
            body=json.dumps(body),
            headers={
                "Authorization": authorization,
                "Content-Type": "application/json",
                "Idempotency-Key": key,
            },
        )
        answer = connection.getresponse()
        document = json.loads(answer.read())
    except (OSError, http.client.HTTPException, ValueError) as error:
        # The list of payments shows whether it was accepted, under this reference.
        failure = f"{type(error).__name__}: {error}"
        return sent | {"status": None, "answer": None, "failure": failure, "ms": _ms(begun_s)}
    finally:
        connection.close()
    return sent | {
        "status": answer.status,
        "answer": document,
        "failure": None,
        "ms": _ms(begun_s),
        "request_id": answer.headers["X-Request-Id"],
    }


def _ms(begun_s: float) -> float:
    return round((monotonic() - begun_s) * 1000, 1)
