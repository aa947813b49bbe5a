"""The sandbox's control endpoints for people and drills: its books, its faults, and the acts of
payer and bank. They are unauthenticated, so they serve this machine only."""

from __future__ import annotations

import html
import json
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qsl

from service.lab.sandbox import refunds
from service.lab.sandbox.books import Books, BooksPage, Object
from service.lab.sandbox.dashboard import BadAct, Dashboard
from service.lab.sandbox.errors import StripeError
from service.lab.sandbox.faults import BadPlan, FaultPlan, Faults, read_plan
from service.lab.sandbox.payment_intents import PaymentIntents
from service.lab.sandbox.wire import HttpAnswer, Request

_FILTERS = ("reference", "payment_id", "payment_intent", "kind", "idempotency_key")


class BadRequest(ValueError):
    """The caller's request cannot be parsed; the text gives the reason."""


class Control:
    """The paths that begin with an underscore."""

    def __init__(self, books: Books, faults: Faults, payment_intents: PaymentIntents) -> None:
        self._books = books
        self._faults = faults
        self._payment_intents = payment_intents
        self._dashboard = Dashboard(payment_intents)
        self._routes: dict[tuple[str, str], Callable[[Request], HttpAnswer]] = {
            ("GET", "/_books"): self._show_books,
            ("GET", "/_control"): self._show_plan,
            ("POST", "/_control"): self._set_plan,
            ("DELETE", "/_control"): self._clear_plan,
            ("POST", "/_complete_action"): self._complete_action,
            ("POST", "/_complete_refund"): self._complete_refund,
            ("POST", "/_dashboard"): lambda request: self._write(
                self._dashboard.read(request.body)
            ),
        }

    def answer(self, request: Request) -> HttpAnswer:
        if not request.is_local:
            return _json(403, {"error": "the sandbox is controlled from its own machine only"})
        try:
            if request.method == "GET" and request.path.startswith("/_authenticate/"):
                return self._show_challenge(request)
            route = self._routes.get((request.method, request.path))
            return route(request) if route else _json(404, {"error": "there is no such address"})
        except (BadRequest, BadPlan, BadAct) as error:
            return _json(400, {"error": str(error)})
        except StripeError as refusal:
            return _json(refusal.status, refusal.body)

    def _show_books(self, request: Request) -> HttpAnswer:
        wanted = dict(parse_qsl(request.query))
        if unknown := set(wanted) - set(_FILTERS):
            raise BadRequest(f"unknown filters {sorted(unknown)}; known are {', '.join(_FILTERS)}")
        with self._books.reading() as page:
            movements = page.movements(wanted)
        totals: dict[str, Counter[str]] = defaultdict(Counter)
        for movement in movements:
            totals[movement["currency"]][movement["kind"]] += movement["amount"]
        return _json(200, {"movements": movements, "totals": totals})

    def _show_plan(self, _request: Request) -> HttpAnswer:
        return _json(200, self._faults.describe())

    def _set_plan(self, request: Request) -> HttpAnswer:
        self._faults.set(read_plan(request.body))
        return self._show_plan(request)

    def _clear_plan(self, request: Request) -> HttpAnswer:
        self._faults.set(FaultPlan())
        return self._show_plan(request)

    def _complete_action(self, request: Request) -> HttpAnswer:
        intent_id, is_proven = _decision(request, "payment_intent")
        return self._write(
            lambda page: self._payment_intents.complete_action(page, intent_id, is_proven=is_proven)
        )

    def _complete_refund(self, request: Request) -> HttpAnswer:
        refund_id, is_paid_out = _decision(request, "refund")
        return self._write(lambda page: refunds.settle(page, refund_id, is_paid_out=is_paid_out))

    def _write(self, act: Callable[[BooksPage], Object]) -> HttpAnswer:
        with self._books.writing(idempotency_key=None) as page:
            return _json(200, act(page))

    def _show_challenge(self, request: Request) -> HttpAnswer:
        intent_id = request.path.removeprefix("/_authenticate/")
        with self._books.reading() as page:
            intent = page.find("payment_intent", intent_id)
        if intent is None:
            return _json(404, {"error": "there is no such payment"})
        page_html = _CHALLENGE.format(
            amount=intent["amount"],
            currency=html.escape(intent["currency"]),
            intent_id=html.escape(intent_id),
        )
        return HttpAnswer(200, page_html.encode(), content_type="text/html; charset=utf-8")


def _decision(request: Request, name: str) -> tuple[str, bool]:
    """The object's id and the decision, from JSON or from the page's form."""
    if request.headers.get("content-type", "").startswith("application/x-www-form-urlencoded"):
        given: Any = dict(parse_qsl(request.body.decode("latin-1")))
        given["success"] = given.get("success") == "true"
    else:
        try:
            given = json.loads(request.body)
        except ValueError as error:
            raise BadRequest("the body is not JSON") from error
    if not isinstance(given, dict) or not isinstance(given.get(name), str):
        raise BadRequest(f"{name} is missing")
    if not isinstance(given.get("success"), bool):
        raise BadRequest("success must be true or false")
    return given[name], given["success"]


def _json(status: int, body: Any) -> HttpAnswer:
    return HttpAnswer(status, json.dumps(body).encode())


_CHALLENGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Sandbox bank</title>
<h1>Sandbox bank</h1>
<p>Is it you who pays {amount} {currency} (minor units)?</p>
<form method="post" action="/_complete_action">
<input type="hidden" name="payment_intent" value="{intent_id}">
<button name="success" value="true">Yes, pay</button>
<button name="success" value="false">No</button>
</form></html>
"""
