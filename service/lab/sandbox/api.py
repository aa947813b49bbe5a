"""The path of one call to the API, top to bottom: parse, draw a fault, perform, answer."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from service.lab.sandbox import disputes, events, form, idempotency, payment_intents, refunds
from service.lab.sandbox.books import Books, BooksPage, Object, SavedAnswer, new_id
from service.lab.sandbox.errors import StripeError, internal, invalid
from service.lab.sandbox.faults import DrawnFault, Faults, SandboxFault
from service.lab.sandbox.form import Check, Form
from service.lab.sandbox.idempotency import InFlight
from service.lab.sandbox.payment_intents import PaymentIntents
from service.lab.sandbox.wire import HttpAnswer, Request, SandboxConnection


@dataclass(frozen=True, slots=True)
class ApiOperation:
    """One operation of the API: its parameters, and the function that performs it."""

    name: str
    act: Callable[[BooksPage, Form, str], Object]
    checks: Mapping[str, Check]
    required: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ApiCall:
    """One parsed call: valid as far as can be checked without the books."""

    operation: ApiOperation
    given: Form
    path_id: str
    account: str
    endpoint: str
    # None for look-ups, and for calls without a key.
    key: str | None
    parameters: bytes
    is_look_up: bool
    request_id: str

    @property
    def operation_names(self) -> tuple[str, ...]:
        """A create with `confirm` counts as both operations."""
        if self.operation.name == "create" and self.given.get("confirm"):
            return ("create", "confirm")
        return (self.operation.name,)


_REFUSED_UNHEARD = {
    SandboxFault.ERROR_429: StripeError(
        429,
        "invalid_request_error",
        "Request rate limit exceeded. Learn more about rate limits here"
        " https://stripe.com/docs/rate-limits.",
        code="rate_limit",
    ),
    SandboxFault.ERROR_503: StripeError(503, "api_error", "Service unavailable."),
}


class Api:
    """Stripe's API, to the extent that a payment service needs."""

    def __init__(self, books: Books, faults: Faults, *, hosted_url: str) -> None:
        self._books = books
        self._faults = faults
        self._in_flight = InFlight()
        self.payment_intents = PaymentIntents(hosted_url=hosted_url)
        self._routes = _routes(self.payment_intents)

    def handle(self, request: Request, line: SandboxConnection) -> None:
        """Answer one request, or fail it as the plan's fault says."""
        request_id = new_id("req")
        try:
            call = self._understand(request, request_id)
        except StripeError as refusal:
            line.answer(_answer(refusal.status, refusal.body, request_id))
            return
        drawn = self._faults.draw(call.operation_names, lambda: self._names(call))
        if self._inject_before(drawn, call, line):
            return
        self._inject_after(drawn, self._perform(call, drawn), line)

    def _understand(self, request: Request, request_id: str) -> ApiCall:
        account = _authenticate(request.headers.get("authorization", ""))
        key = request.headers.get("idempotency-key")
        if key is not None:
            idempotency.check_length(key)
        operation, path_id = self._route(request)
        parameters = request.body if request.method == "POST" else request.query.encode()
        given = form.check(
            form.parse(parameters.decode("latin-1")),
            operation.checks,
            required=operation.required,
        )
        return ApiCall(
            operation=operation,
            given=given,
            path_id=path_id,
            account=account,
            endpoint=request.path,
            key=key if request.method == "POST" else None,
            parameters=parameters,
            is_look_up=request.method == "GET",
            request_id=request_id,
        )

    def _route(self, request: Request) -> tuple[ApiOperation, str]:
        for method, pattern, operation in self._routes:
            if method == request.method and (match := pattern.fullmatch(request.path)):
                return operation, match.group(1) if pattern.groups else ""
        raise invalid(f"Unrecognized request URL ({request.method}: {request.path}).", status=404)

    def _names(self, call: ApiCall) -> tuple[str | None, ...]:
        """The references that identify the payment of this call."""
        metadata = call.given.get("metadata", {})
        names = [metadata.get("reference"), metadata.get("payment_id")]
        intent_id = call.path_id or call.given.get("payment_intent", "")
        with self._books.reading() as page:
            if intent := page.find("payment_intent", intent_id):
                metadata = intent["metadata"]
                names += [metadata.get("reference"), metadata.get("payment_id")]
        return tuple(name for name in names if name)

    def _inject_before(self, drawn: DrawnFault, call: ApiCall, line: SandboxConnection) -> bool:
        """Faults before the operation; True when the call ends here."""
        if drawn.fault is SandboxFault.LATE_CHARGE:
            line.hang_up()
            return False
        if drawn.fault is SandboxFault.HANG:
            line.hold(drawn.plan.hang_s)
            line.hang_up()
        elif drawn.fault is SandboxFault.RESET:
            line.reset()
        elif refusal := _REFUSED_UNHEARD.get(drawn.fault):
            line.answer(_answer(refusal.status, refusal.body, call.request_id))
        else:
            return False
        return True

    def _perform(self, call: ApiCall, drawn: DrawnFault) -> HttpAnswer:
        """Perform the operation, once for each key, and return the current answer."""
        if call.is_look_up:
            _delay(drawn)
            with self._books.reading() as page:
                return self._execute(page, call, drawn)
        if call.key is None or not drawn.plan.honour_keys:
            _delay(drawn)
            with self._books.writing(idempotency_key=call.key) as page:
                return self._execute(page, call, drawn)
        try:
            with self._in_flight.only(call.account, call.key):
                _delay(drawn)
                with self._books.writing(idempotency_key=call.key) as page:
                    return self._execute_once(page, call, call.key, drawn)
        except StripeError as refusal:
            return _answer(refusal.status, refusal.body, call.request_id)

    def _execute_once(
        self, page: BooksPage, call: ApiCall, key: str, drawn: DrawnFault
    ) -> HttpAnswer:
        """Replay the first answer to the key, a 500 too; else execute and save the answer."""
        saved = page.saved_answer(call.account, key)
        if saved is not None:
            idempotency.check_same(
                saved, key=key, endpoint=call.endpoint, parameters=call.parameters
            )
            return _replayed(saved, call.request_id)
        answer = self._execute(page, call, drawn)
        page.save_answer(
            call.account,
            key,
            SavedAnswer(
                endpoint=call.endpoint,
                fingerprint=idempotency.fingerprint(call.parameters),
                status=answer.status,
                body=answer.body,
                request_id=call.request_id,
            ),
        )
        return answer

    def _execute(self, page: BooksPage, call: ApiCall, drawn: DrawnFault) -> HttpAnswer:
        if drawn.fault is SandboxFault.ERROR_500_SAVED:
            return _answer(500, internal().body, call.request_id)
        try:
            status, body = 200, call.operation.act(page, call.given, call.path_id)
        # A refusal is an answer too: its records (a declined charge) stay.
        except StripeError as refusal:
            status, body = refusal.status, refusal.body
        if drawn.fault is SandboxFault.ERROR_500_AFTER_CHARGE:
            status, body = 500, internal().body
        return _answer(status, body, call.request_id)

    def _inject_after(self, drawn: DrawnFault, answer: HttpAnswer, line: SandboxConnection) -> None:
        """Faults after the operation: the call has been performed, whatever the client sees."""
        plan = drawn.plan
        match drawn.fault:
            case SandboxFault.HANG_AFTER_CHARGE:
                line.hold(plan.hang_s)
                line.hang_up()
            case SandboxFault.RESET_AFTER_CHARGE:
                line.reset()
            case SandboxFault.LATE_CHARGE:
                pass  # The client had closed the connection already.
            case SandboxFault.DRIP:
                line.drip(answer, pause_s=plan.drip_ms / 1000, longest_s=plan.hang_s)
            case SandboxFault.TRUNCATE:
                line.send_part(answer.head() + _half(answer.body))
            case SandboxFault.TRUNCATE_HEAD:
                line.send_part(_half(answer.head()))
            case SandboxFault.GARBAGE:
                noise = _half(answer.body) + b"\xff\xfe<html>"
                line.answer(HttpAnswer(200, noise))
            case _:
                line.answer(answer)


def _delay(drawn: DrawnFault) -> None:
    if drawn.fault is SandboxFault.SLOW:
        time.sleep(drawn.plan.slow_ms / 1000)
    elif drawn.fault is SandboxFault.LATE_CHARGE:
        time.sleep(drawn.plan.late_s)


def _half(content: bytes) -> bytes:
    return content[: len(content) // 2]


def _answer(status: int, body: Mapping[str, Any], request_id: str) -> HttpAnswer:
    encoded = json.dumps(body, separators=(",", ":")).encode()
    return HttpAnswer(status, encoded, headers={"Request-Id": request_id})


def _replayed(saved: SavedAnswer, request_id: str) -> HttpAnswer:
    return HttpAnswer(
        saved.status,
        saved.body,
        headers={
            "Request-Id": request_id,
            "Original-Request": saved.request_id,
            "Idempotent-Replayed": "true",
        },
    )


def _authenticate(authorization: str) -> str:
    """The account of a secret test key; every well-formed key is a separate account."""
    scheme, _, secret = authorization.partition(" ")
    if scheme.lower() != "bearer" or not secret:
        raise invalid(
            "You did not provide an API key. You need to provide your API key in the"
            " Authorization header, using Bearer auth (e.g. 'Authorization: Bearer"
            " YOUR_SECRET_KEY').",
            status=401,
        )
    if not re.fullmatch(r"(sk|rk)_test_\w+", secret):
        raise invalid("Invalid API Key provided.", status=401, code="api_key_invalid")
    return hashlib.sha256(secret.encode()).hexdigest()


def _routes(intents: PaymentIntents) -> list[tuple[str, re.Pattern[str], ApiOperation]]:
    intent, refund, one = "/v1/payment_intents", "/v1/refunds", r"/(\w+)"
    checks = payment_intents
    create = ApiOperation("create", intents.create, checks.CREATE_CHECKS, ("amount", "currency"))
    confirm = ApiOperation("confirm", intents.confirm, checks.CONFIRM_CHECKS)
    capture = ApiOperation("capture", intents.capture, checks.CAPTURE_CHECKS)
    cancel = ApiOperation("cancel", intents.cancel, checks.CANCEL_CHECKS)
    retrieve = ApiOperation("retrieve", intents.retrieve, checks.RETRIEVE_CHECKS)
    list_intents = ApiOperation("list", intents.list, checks.LIST_INTENTS_CHECKS)
    give_back = ApiOperation("refund", refunds.create, refunds.CREATE_CHECKS)
    retrieve_refund = ApiOperation("retrieve", refunds.retrieve, refunds.RETRIEVE_CHECKS)
    list_refunds = ApiOperation("list", refunds.list_refunds, refunds.LIST_REFUNDS_CHECKS)
    retrieve_charge = ApiOperation("retrieve", refunds.retrieve_charge, refunds.RETRIEVE_CHECKS)
    list_charges = ApiOperation("list", refunds.list_charges, refunds.LIST_CHARGES_CHECKS)
    retrieve_dispute = ApiOperation("retrieve", disputes.retrieve, disputes.RETRIEVE_CHECKS)
    list_disputes = ApiOperation("list", disputes.list_disputes, disputes.LIST_DISPUTES_CHECKS)
    retrieve_event = ApiOperation("retrieve", events.retrieve, events.RETRIEVE_CHECKS)
    list_events = ApiOperation("list", events.list_events, events.LIST_EVENTS_CHECKS)
    table = (
        ("POST", intent, create),
        ("POST", f"{intent}{one}/confirm", confirm),
        ("POST", f"{intent}{one}/capture", capture),
        ("POST", f"{intent}{one}/cancel", cancel),
        ("GET", f"{intent}{one}", retrieve),
        ("GET", intent, list_intents),
        ("POST", refund, give_back),
        ("GET", f"{refund}{one}", retrieve_refund),
        ("GET", refund, list_refunds),
        ("GET", f"/v1/charges{one}", retrieve_charge),
        ("GET", "/v1/charges", list_charges),
        ("GET", f"/v1/disputes{one}", retrieve_dispute),
        ("GET", "/v1/disputes", list_disputes),
        ("GET", f"/v1/events{one}", retrieve_event),
        ("GET", "/v1/events", list_events),
    )
    return [(method, re.compile(path), operation) for method, path, operation in table]
