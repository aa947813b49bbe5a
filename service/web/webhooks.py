"""Webhooks from providers: checked, stored, and answered; acting on them is the reconciler's."""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import time
from collections.abc import Sequence
from typing import Annotated, Any
from uuid import UUID

from flask import Blueprint, Response, request
from pydantic import BaseModel, Field, ValidationError

from service.errors import InvalidJson, NotFound, SignatureInvalid
from service.observability import metrics
from service.operations import STRIPE_SIGNATURE, Operation, documented
from service.payments.model import parse_id
from service.payments.settling_store import SettlingStore
from service.web.bodies import read_body
from service.web.request_scope import request_deadline
from service.web.schemas import Received

log = logging.getLogger(__name__)

# How far a signature's time may be from ours, to either side: older is a replay, newer a bad clock.
TOLERANCE_S = 300
# Two while the endpoint's secret is being rotated; a header with more is an attempt to guess.
MOST_SIGNATURES = 8

_SANE = re.compile(r"[A-Za-z0-9_.\-]{1,255}").fullmatch
_Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.\-]{1,255}$")]


class EventObject(BaseModel):
    """What an event is about; of all that providers say of it only this is read."""

    id: Any
    payment_intent: Any = None
    charge: Any = None
    metadata: dict[str, Any] | None = None


class EventData(BaseModel):
    """Where providers put the object."""

    object: EventObject


class ProviderEvent(BaseModel):
    """A provider's event: a hint to look, never a fact about money."""

    id: _Name
    type: _Name
    data: EventData


def webhooks_blueprint(*, inbox: SettlingStore, stripe_secrets: Sequence[str]) -> Blueprint:
    """POST /v1/webhooks/stripe. Without a secret every webhook is refused."""
    blueprint = Blueprint("webhooks", __name__)

    @blueprint.post("/v1/webhooks/<provider>")
    @documented(
        Operation(
            summary="A provider's event; 200 once it is stored",
            body=ProviderEvent,
            headers=(STRIPE_SIGNATURE,),
            answers={200: ("Stored, or here already", Received)},
            problems=("signature_invalid",),
        )
    )
    def receive_webhook(provider: str) -> Response:
        if provider != "stripe":
            raise NotFound("There is no such provider.")
        deadline = request_deadline()
        body = read_body()
        try:
            check_signature(
                body,
                request.headers.get("Stripe-Signature", ""),
                secrets=stripe_secrets,
                now_s=time.time(),
            )
        except SignatureInvalid:
            metrics.webhooks_received_total.labels("bad_signature").inc()
            log.warning("webhook.signature_invalid", extra={"provider": provider})
            raise
        event = read_event(body)
        is_new = inbox.receive_webhook(deadline, provider=provider, **event)
        metrics.webhooks_received_total.labels("stored" if is_new else "duplicate").inc()
        return Response('{"received": true}\n', 200, content_type="application/json")

    return blueprint


def check_signature(body: bytes, header: str, *, secrets: Sequence[str], now_s: float) -> None:
    """Raise SignatureInvalid unless Stripe's `header` signs this very body, about now."""
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


def read_event(body: bytes) -> dict[str, Any]:
    """What we keep of the event: which object it hints at. The object itself is fetched later."""
    try:
        event = ProviderEvent.model_validate_json(body)
    except ValidationError:
        metrics.webhooks_received_total.labels("refused").inc()
        raise InvalidJson("The body is not an event.") from None
    about = event.data.object
    # A refund or a dispute is found by its charge; expanded, the charge stands where its id did.
    reference = _reference(about.payment_intent) or _reference(about.charge) or about.id
    metadata = about.metadata or {}
    payment_id, merchant_id = metadata.get("payment_id"), metadata.get("merchant_id")
    return {
        "event_id": event.id,
        "type_": event.type,
        "provider_ref": reference if isinstance(reference, str) and _SANE(reference) else None,
        "payment_id": parse_id(payment_id, "pay_") if isinstance(payment_id, str) else None,
        "merchant_id": _parse_uuid(merchant_id),
    }


def _reference(found: Any) -> Any:
    return found.get("id") if isinstance(found, dict) else found


def _parse_uuid(value: object) -> UUID | None:
    try:
        return UUID(str(value)) if value is not None else None
    except ValueError:
        return None
