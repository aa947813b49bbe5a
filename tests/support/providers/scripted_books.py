"""Stripe-shaped books in memory, and the script that decides how each request is answered."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any
from urllib.parse import parse_qsl, urlsplit

Object = dict[str, Any]
Form = dict[str, str]
EVERY = "*"


@dataclass
class Rule:
    """How the next requests of one kind are answered; the first rule that fits decides.

    `on` is an operation: create, create_confirmed, confirm, capture, cancel, retrieve, list,
    refund, retrieve_refund, list_refunds, events, or "*". A charge of the Charges API is created
    by create_confirmed.
    """

    on: str = EVERY
    # Requests that this rule answers; None: all, until `clear`.
    times: int | None = 1
    # Only requests about this payment of ours.
    payment_id: str | None = None
    # Whether the books act on the request: now, later (at `execute_held`), or never (a gateway).
    execute: str = "now"
    # A creation moves money although it is unconfirmed.
    as_confirmed: bool = False
    # None: the honest status.
    status: int | None = None
    # None: the honest body. A text goes out as it is, anything else as JSON.
    body: Any = None
    # Written over the top fields of the honest body.
    patch: Object = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    # Keep the answer under the request's key, and replay it with `Idempotent-Replayed: true`.
    save: bool = False
    # Close the connection without an answer.
    drop: bool = False
    # The wait before the answer; the books act first.
    delay_s: float = 0.0


@dataclass
class Request:
    """A received request."""

    method: str
    path: str
    form: Form
    key: str | None
    operation: str

    @property
    def parts(self) -> list[str]:
        return self.path.strip("/").split("/")[1:]


@dataclass
class Reply:
    """An answer: a status and a body, or none."""

    status: int
    body: Any
    headers: dict[str, str] = field(default_factory=dict)
    drop: bool = False
    delay_s: float = 0.0


class Refusal(Exception):
    """Stripe's error answer."""

    def __init__(self, status: int, message: str, **more: Any) -> None:
        super().__init__(message)
        self.status = status
        self.error = {"type": "invalid_request_error", "message": message, **more}


class ScriptedBooks:
    """Collections of objects, the money that moved, and the rules in force. For many threads."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._numbers = itertools.count(1)
        self.clear(books=True)

    def clear(self, *, books: bool = False) -> None:
        """Forget the rules; with `books`, also all objects and movements."""
        with self._lock:
            self.rules: list[Rule] = []
            if books:
                self.honours_keys = True
                self.collections: dict[str, list[Object]] = {}
                self.movements: list[Object] = []
                self.requests: list[Request] = []
                self._saved: dict[str, Reply] = {}
                self._saved_for: dict[str, Request] = {}
                self._held: list[Callable[[], Reply]] = []

    # --- Requests -------------------------------------------------------------------------------

    def answer(self, method: str, target: str, headers: dict[str, str], body: bytes) -> Reply:
        """The reply to one request, by the first rule that fits, or honestly."""
        split = urlsplit(target)
        text = body.decode() if method == "POST" else split.query
        form = dict(parse_qsl(text, keep_blank_values=True))
        key = headers.get("idempotency-key")
        request = Request(method, split.path, form, key, _operation(method, split.path, form))
        with self._lock:
            self.requests.append(request)
            rule = self._rule_for(request)
            saved = self._saved.get(key) if key and self.honours_keys else None
            if rule is None:
                if saved is not None:
                    return _conflict() if self._differs(request) else _replayed(saved)
                return self._save(request, self._honest(request, None))
            return self._scripted(request, rule, saved)

    def _scripted(self, request: Request, rule: Rule, saved: Reply | None) -> Reply:
        honest = saved or Reply(500, {"error": {"type": "api_error"}})
        if rule.execute == "now" and saved is None:
            honest = self._honest(request, rule)
        elif rule.execute == "later" and saved is None:
            self._held.append(lambda: self._honest(request, rule))
        content = honest.body if rule.body is None else rule.body
        if rule.patch:
            content = {**content, **rule.patch}
        status = honest.status if rule.status is None else rule.status
        reply = Reply(status, content, rule.headers, rule.drop, rule.delay_s)
        return self._save(request, reply) if rule.save else reply

    def _save(self, request: Request, reply: Reply) -> Reply:
        if request.key is not None and request.method == "POST":
            self._saved[request.key] = reply
            self._saved_for.setdefault(request.key, request)
        return reply

    def _differs(self, request: Request) -> bool:
        """Whether the key came with another path or other parameters before."""
        first = self._saved_for[request.key or ""]
        return (first.path, first.form) != (request.path, request.form)

    def _rule_for(self, request: Request) -> Rule | None:
        for rule in self.rules:
            if rule.on not in (EVERY, request.operation) or rule.times == 0:
                continue
            if rule.payment_id not in (None, self._payment_id(request)):
                continue
            if rule.times is not None:
                rule.times -= 1
            return rule
        return None

    def _payment_id(self, request: Request) -> str | None:
        named = [*request.parts, request.form.get("payment_intent"), request.form.get("charge")]
        found = next((self.find(name) for name in named if name and self.find(name)), None)
        told = request.form.get("metadata[payment_id]")
        return told or (found["metadata"].get("payment_id") if found else None)

    def execute_held(self) -> int:
        """Execute every request that a rule postponed; returns their number."""
        with self._lock:
            held, self._held = self._held, []
            for work in held:
                work()
            return len(held)

    # --- Honest answers -------------------------------------------------------------------------

    def _honest(self, request: Request, rule: Rule | None) -> Reply:
        try:
            return Reply(200, self._act(request, rule))
        except Refusal as refusal:
            return Reply(refusal.status, {"error": refusal.error})

    def _act(self, request: Request, rule: Rule | None) -> Object:
        form, parts = request.form, request.parts
        match request.operation:
            case "create" | "create_confirmed":
                return self._create(request, rule)
            case "confirm" | "capture" | "cancel":
                act = {"confirm": self.pay, "capture": self._capture, "cancel": self.cancel}
                return act[request.operation](self._load(parts[1]), request)
            case "refund":
                return self._refund(request)
            case "retrieve" | "retrieve_refund":
                return self._load(parts[1])
        return self._page(self.collections.get(parts[0], []), form)

    def _create(self, request: Request, rule: Rule | None) -> Object:
        form = request.form
        kind = "charge" if request.parts[0] == "charges" else "payment_intent"
        created = self.put(
            request.parts[0],
            id=self._new_id("ch" if kind == "charge" else "pi"),
            object=kind,
            amount=int(form["amount"]),
            currency=form["currency"],
            status="requires_confirmation",
            capture_method=form.get("capture_method", "automatic"),
            amount_received=0,
            amount_capturable=0,
            payment_method=form.get("payment_method") or form.get("source"),
            metadata=_metadata(form),
        )
        if kind == "charge":
            is_captured = form.get("capture") != "false"
            created |= {"capture_method": "automatic" if is_captured else "manual"}
            created |= {"payment_intent": None, "amount_refunded": 0, "refunded": False}
        if request.operation == "create_confirmed" or (rule and rule.as_confirmed):
            return self.pay(created, request)
        return created

    def pay(self, found: Object, request: Request | None = None) -> Object:
        """Take or reserve the money of an object that has none yet."""
        if found["status"] in ("succeeded", "requires_capture", "canceled"):
            raise Refusal(
                400,
                f"You cannot confirm this: its status is {found['status']}.",
                code="payment_intent_unexpected_state",
                payment_intent=found,
            )
        amount, is_manual = found["amount"], found["capture_method"] == "manual"
        found["status"] = "requires_capture" if is_manual else "succeeded"
        found["last_payment_error"] = None
        found["amount_capturable" if is_manual else "amount_received"] = amount
        if found["object"] == "charge":
            found |= {"status": "succeeded", "paid": True, "captured": not is_manual}
            found["amount_captured"] = 0 if is_manual else amount
        self._move("authorize" if is_manual else "charge", found, amount, request)
        return found

    def _capture(self, found: Object, request: Request | None = None) -> Object:
        form = request.form if request else {}
        asked = form.get("amount_to_capture") or form.get("amount") or found["amount"]
        return self.capture(found, int(asked), request)

    def capture(self, found: Object, amount: int, request: Request | None = None) -> Object:
        """Capture the reserved money, or a part of it."""
        reserved = found["amount_capturable"]
        if not 0 < amount <= reserved:
            raise Refusal(400, "There is not so much to capture.", payment_intent=found)
        found |= {"status": "succeeded", "amount_received": amount, "amount_capturable": 0}
        if found["object"] == "charge":
            found |= {"captured": True, "amount_captured": amount}
        self._move("capture", found, amount, request)
        return found

    def cancel(self, found: Object, request: Request | None = None) -> Object:
        """End an intent; its reserved money is released."""
        if found["status"] in ("succeeded", "canceled"):
            raise Refusal(400, f"It is {found['status']}.", code="payment_intent_unexpected_state")
        if found["amount_capturable"]:
            self._move("void", found, found["amount_capturable"], request)
        found |= {"status": "canceled", "amount_capturable": 0}
        return found

    def _refund(self, request: Request) -> Object:
        form = request.form
        field_name = "payment_intent" if "payment_intent" in form else "charge"
        return self.refund(self._load(form[field_name]), int(form.get("amount", 0)), request)

    def refund(self, found: Object, amount: int, request: Request | None = None) -> Object:
        """Give money back; without a request it is a refund of the dashboard, without our metadata."""
        given_back = [r for r in self.collections.get("refunds", []) if _is_of(r, found)]
        left = found["amount_received"] - sum(
            one["amount"] for one in given_back if one["status"] not in ("failed", "canceled")
        )
        if found["object"] == "charge" and not found["captured"] and amount == found["amount"]:
            found |= {"refunded": True, "amount_refunded": amount, "amount_capturable": 0}
        elif not 0 < amount <= left:
            raise Refusal(400, "There is not so much to give back.", param="amount")
        self._move("refund", found, amount, request)
        return self.put(
            "refunds",
            id=self._new_id("re"),
            object="refund",
            amount=amount,
            currency=found["currency"],
            status="succeeded",
            charge=found["id"] if found["object"] == "charge" else None,
            payment_intent=found["id"] if found["object"] == "payment_intent" else None,
            metadata=_metadata(request.form) if request else {},
        )

    def _page(self, objects: list[Object], form: Form) -> Object:
        since, until = (int(form.get(f"created[{name}]", edge)) for name, edge in _EDGES)
        names = ("payment_intent", "charge", "type")
        found = [
            one
            for one in reversed(objects)
            if since <= one["created"] <= until
            and all(one.get(name) == form[name] for name in names if name in form)
        ]
        if "starting_after" in form:
            places = [n for n, one in enumerate(found) if one["id"] == form["starting_after"]]
            found = found[places[0] + 1 :] if places else []
        limit = int(form.get("limit", 10))
        return {"object": "list", "data": found[:limit], "has_more": len(found) > limit}

    # --- Books ----------------------------------------------------------------------------------

    def put(self, collection: str, **fields: Any) -> Object:
        """Add an object unchanged: a foreign charge, a dispute, an event."""
        made: Object = {"id": self._new_id("obj"), "created": int(time.time()), "metadata": {}}
        made |= fields
        with self._lock:
            self.collections.setdefault(collection, []).append(made)
        return made

    def change(self, object_id: str, *, event: str | None = None, **fields: Any) -> Object:
        """Change an object without our knowledge; with `event`, the feed has an event about it."""
        with self._lock:
            found = self._load(object_id)
            found |= fields
            if event is not None:
                # The object's state at that time, as in Stripe's events.
                self.put(
                    "events",
                    id=self._new_id("evt"),
                    object="event",
                    type=event,
                    data={"object": {**found}},
                )
            return found

    def find(self, object_id: str | None) -> Object | None:
        every = itertools.chain.from_iterable(self.collections.values())
        return next((one for one in every if one["id"] == object_id), None)

    def by_payment(self, payment_id: str) -> list[Object]:
        """The objects that carry our metadata of that payment."""
        every = itertools.chain.from_iterable(self.collections.values())
        return [one for one in every if one["metadata"].get("payment_id") == payment_id]

    def _load(self, object_id: str) -> Object:
        found = self.find(object_id)
        if found is None:
            raise Refusal(404, f"No such object: {object_id}", code="resource_missing")
        return found

    def _move(self, kind: str, found: Object, amount: int, request: Request | None) -> None:
        self.movements.append(
            {
                "kind": kind,
                "id": found["id"],
                "payment_id": found["metadata"].get("payment_id"),
                "amount": amount,
                "currency": found["currency"],
                "key": request.key if request else None,
            }
        )

    def _new_id(self, prefix: str) -> str:
        return f"{prefix}_scripted{next(self._numbers)}"

    def shown_requests(self) -> list[Object]:
        with self._lock:
            return [asdict(request) for request in self.requests]


_EDGES = (("gte", 0), ("lte", 10**12))


def _operation(method: str, path: str, form: Form) -> str:
    collection, *rest = path.strip("/").split("/")[1:]
    if collection == "refunds":
        if method == "POST":
            return "refund"
        return "retrieve_refund" if rest else "list_refunds"
    if collection == "events":
        return "events"
    if method == "GET":
        return "retrieve" if rest else "list"
    if len(rest) == 2:
        return rest[1]
    is_confirmed = collection == "charges" or form.get("confirm") == "true"
    return "create_confirmed" if is_confirmed else "create"


def _conflict() -> Reply:
    """Stripe's answer to a used key with another path or other parameters."""
    message = "Keys can only be used with the same parameters they were first used with."
    return Reply(400, {"error": {"type": "idempotency_error", "message": message}})


def _replayed(saved: Reply) -> Reply:
    headers = {**saved.headers, "Idempotent-Replayed": "true"}
    return Reply(saved.status, saved.body, headers)


def _metadata(form: Form) -> dict[str, str]:
    prefix = "metadata["
    return {name[len(prefix) : -1]: text for name, text in form.items() if name.startswith(prefix)}


def _is_of(refund: Object, found: Object) -> bool:
    return found["id"] in (refund["payment_intent"], refund["charge"])
