"""Webhooks from providers: checked, stored, and answered; the reconciler acts on them."""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import time
from collections.abc import Sequence
from typing import Annotated, Any, Literal
from uuid import UUID

from flask import Blueprint, Response, request
from pydantic import BaseModel, Field
from pydantic_core import from_json

from service.errors import NotFound, SignatureInvalid
from service.ids import parse_id
from service.observability.metrics import catalogue as metrics
from service.providers.stripe import json as stripe_json
from service.web.api.plane import data_plane
from service.web.http.bodies import read_body
from service.web.http.request_scope import request_deadline
from service.web.openapi.operation import STRIPE_SIGNATURE, Operation, documented
from service.web.server.framing import MAX_EVENT_BYTES

log = logging.getLogger(__name__)

# The largest difference of a signature's time, both ways: older is a replay, newer a bad clock.
TOLERANCE_S = 300
# Two while the endpoint's secret is being rotated; a header with more is an attempt to guess.
MOST_SIGNATURES = 8

_SANE = re.compile(r"[A-Za-z0-9_.\-]{1,255}").fullmatch
_Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.\-]{1,255}$")]


class EventObject(BaseModel):
    """The object of an event; all its other fields are ignored."""

    id: Any = None
    payment_intent: Any = None
    charge: Any = None
    metadata: Any = None


class EventData(BaseModel):
    """The field that contains the object."""

    object: EventObject | None = None


class RelatedObject(BaseModel):
    """The field in which thin events name the object."""

    id: Any = None


class ProviderEvent(BaseModel):
    """A provider's event: a hint for a look-up, never a fact about money."""

    id: _Name
    type: _Name
    data: EventData | None = None
    related_object: RelatedObject | None = None


class Received(BaseModel):
    """The webhook is stored."""

    received: Literal[True]


blueprint = Blueprint("webhooks", __name__)


@blueprint.post("/v1/webhooks/<provider>")
@documented(
    Operation(
        summary="A provider's event; 200 once it is stored",
        body=ProviderEvent,
        headers=(STRIPE_SIGNATURE,),
        answers={200: ("Stored, here already, or signed and not about payments", Received)},
        problems=("signature_invalid",),
    )
)
def receive_webhook(provider: str) -> Response:
    if provider != "stripe":
        raise NotFound("There is no such provider.")
    plane, deadline = data_plane(), request_deadline()
    body = read_body(MAX_EVENT_BYTES)
    try:
        check_signature(
            body,
            request.headers.get("Stripe-Signature", ""),
            secrets=plane.stripe_secrets,
            now_s=time.time(),
        )
    except SignatureInvalid:
        metrics.webhooks_received_total.labels("bad_signature").inc()
        log.warning("webhook.signature_invalid", extra={"provider": provider})
        raise
    event = read_event(body)
    if event is None:
        # A valid signature, but no hint for us. A refusal would not change the event, and
        # providers stop sending to endpoints that refuse.
        metrics.webhooks_received_total.labels("ignored").inc()
        return _received()
    is_new = plane.inbox.receive_webhook(deadline, provider=provider, **event)
    metrics.webhooks_received_total.labels("stored" if is_new else "duplicate").inc()
    return _received()


def _received() -> Response:
    return Response('{"received": true}\n', 200, content_type="application/json")


def check_signature(body: bytes, header: str, *, secrets: Sequence[str], now_s: float) -> None:
    """Raise SignatureInvalid unless Stripe's `header` signs this body, at about this time."""
    stamp, signatures = _parse_signature(header)
    if stamp is None or not signatures:
        raise SignatureInvalid("The Stripe-Signature header is missing or malformed.")
    if abs(now_s - int(stamp)) > TOLERANCE_S:
        raise SignatureInvalid("The signature's time is too far from ours.")
    signed = stamp.encode() + b"." + body
    for secret in secrets:
        expected = hmac.new(secret.encode(), signed, hashlib.sha256).hexdigest().encode()
        if any(hmac.compare_digest(expected, signature.encode()) for signature in signatures):
            return
    raise SignatureInvalid("The signature does not match the body.")


def _parse_signature(header: str) -> tuple[str | None, list[str]]:
    stamp: str | None = None
    signatures = []
    for part in header.split(",", MOST_SIGNATURES + 1)[: MOST_SIGNATURES + 1]:
        name, _, value = part.strip().partition("=")
        if name == "t" and stamp is None and _STAMP.fullmatch(value):
            stamp = value
        elif name == "v1":
            signatures.append(value)
    return stamp, signatures


_STAMP = re.compile(r"[0-9]{1,12}")


def read_event(body: bytes) -> dict[str, Any] | None:
    """The stored part of a signed event: the object that it names, to be fetched later.

    None without such an object: no event at all, one without an object, or an object without an id
    and without a payment of ours.
    """
    event = _parsed(body)
    event_id, kind = _name_in(event, "id"), _name_in(event, "type")
    about = _inner(_inner(event, "data"), "object")
    metadata = _inner(about, "metadata")
    # A refund or a dispute is found by its charge; an expanded charge replaces its id.
    reference = (
        _reference(about, "payment_intent")
        or _reference(about, "charge")
        or _name_in(about, "id")
        or _name_in(_inner(event, "related_object"), "id")
    )
    payment_id = parse_id(_name_in(metadata, "payment_id") or "", "pay_")
    if event_id is None or kind is None or (reference is None and payment_id is None):
        return None
    return {
        "event_id": event_id,
        "type_": kind,
        "provider_ref": reference,
        "payment_id": payment_id,
        "merchant_id": _parse_uuid(_name_in(metadata, "merchant_id")),
    }


def _parsed(body: bytes) -> Any:
    """The body's JSON; None where it is none.

    The quick parser refuses half a character, a number of any length or deep nesting: such a value in
    a field that we ignore must not hide the hint, so the parser of the provider's answers reads it.
    """
    try:
        return from_json(body)
    except ValueError:
        try:
            return stripe_json.read(body)
        except (ValueError, RecursionError):
            return None


def _reference(about: Any, name: str) -> str | None:
    return _name_in(about, name) or _name_in(_inner(about, name), "id")


def _inner(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, dict) else None


def _name_in(value: Any, name: str) -> str | None:
    """The value if it is a valid name, else None."""
    found = _inner(value, name)
    return found if isinstance(found, str) and _SANE(found) else None


def _parse_uuid(value: str | None) -> UUID | None:
    try:
        return UUID(value) if value is not None else None
    except ValueError:
        return None
