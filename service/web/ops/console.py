"""The blueprint `console`, on the ops plane: one page for the person on call, and its data."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from flask import Blueprint, Response, jsonify, render_template, request

from service.errors import NotFound, WrongState
from service.ids import parse_id
from service.observability.metrics.statistics import describe_now
from service.observability.metrics.window import Window
from service.payments.charge.model import (
    Payment,
)
from service.payments.merchants import ALL_SCOPES, PLATFORM
from service.web.api.schemas import present
from service.web.api.timeline_schemas import Timeline, present_event
from service.web.http.compression import compress_file
from service.web.http.request_scope import request_deadline
from service.web.openapi.operation import Operation, documented
from service.web.ops.console_payment import make_test_payment
from service.web.ops.plane import ops_plane, require_scope
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


blueprint = Blueprint(
    "console",
    __name__,
    template_folder="templates",
    static_folder="static/console",
    static_url_path="/console/static",
)


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
    return render_template("console.html", instance=ops_plane().instance)


@blueprint.get("/console/state")
@documented(
    Operation(
        summary="The console's current figures",
        answers={200: ("The figures", None)},
        problems=("forbidden",),
    )
)
def state() -> Response:
    plane = ops_plane()
    after_s = request.args.get("after", 0.0, type=float)
    if request.args.get("boot") != plane.instance.boot:
        after_s = 0.0
    now = describe_now(Window({}, plane.history.watch(), 0.0))
    windows, report = plane.figures.windows(), plane.health.report()
    return jsonify(
        {
            "boot": plane.instance.boot,
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "glance": glance(now, windows, report),
            "budgets": budgets(windows),
            "now": now,
            "windows": windows,
            "health": report,
            "history": plane.history.after(after_s),
            "has_rehearsals": plane.instance.has_rehearsals,
        }
    )


@blueprint.get("/console/operator")
@documented(
    Operation(summary="The calling key", scope="operator", answers={200: ("The key", None)})
)
def who() -> Response:
    caller = require_scope("operator")
    scopes = sorted(caller.scopes, key=ALL_SCOPES.index)
    return jsonify({"key_id": caller.key_id, "mode": caller.mode, "scopes": scopes})


@blueprint.get("/console/payments")
@documented(
    Operation(summary="The newest payments", scope="operator", answers={200: ("In brief", None)})
)
def payments() -> Response:
    caller = require_scope("operator")
    newest = ops_plane().store.list(caller.merchant_id, request_deadline(), limit=PAYMENTS_SHOWN)
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
    caller, identifier = require_scope("operator"), parse_id(payment_id, "pay_")
    events = (
        ops_plane().store.timeline(caller.merchant_id, identifier, request_deadline())
        if identifier
        else []
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
    caller = require_scope(PLATFORM)
    if caller.mode != "test":
        raise WrongState("A test payment needs a test key: this one would move real money.")
    return jsonify(make_test_payment(ops_plane().instance, request.headers["Authorization"]))


@blueprint.after_request
def protect(answer: Response) -> Response:
    answer.headers["Content-Security-Policy"] = CSP
    answer.headers["Cross-Origin-Resource-Policy"] = "same-origin"
    # The request's scope sets `no-store` for every answer; files would have two policies.
    answer.headers.pop("Cache-Control", None)
    if request.endpoint == f"{blueprint.name}.static":
        compress_file(answer)
    return answer


def _brief(payment: Payment) -> dict[str, Any]:
    # The page has no place for disputes, so they are not read.
    whole = present(payment, ())
    shown = ("id", "status", "amount", "currency", "reference", "provider", "provider_ref")
    return {name: whole[name] for name in (*shown, "created_at", "updated_at")} | {
        "attempts": len(payment.attempts),
        "error": next((one["error"] for one in reversed(payment.attempts) if one["error"]), None),
    }
