"""Hooks for facts that schemathesis cannot read from the description; loaded in its process."""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import time
from datetime import datetime
from typing import Any
from uuid import uuid4

import requests
import schemathesis

# Long enough for every answer here.
PATIENCE_MS = 8000
_KEY = re.compile(r'[!#-~][!-~]{0,254}|"(?:[!#-\[\]-~]|\\["\\]){1,255}"')
_AT_PROVIDER = os.environ["PROVIDER_CURRENCIES"].split()
_SIGNED = re.compile(r"t=[0-9]{1,12},v1=[0-9a-f]{64}")


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: dict[str, Any]) -> None:
    """Give a valid request the values that only a real caller has."""
    given = case.headers or {}
    wanted_ms = str(given.get("X-Request-Timeout-Ms", ""))
    # One millisecond is valid but passes before any work begins: the 503 would prove nothing.
    if re.fullmatch("[1-9][0-9]*", wanted_ms) and int(wanted_ms) < PATIENCE_MS:
        given["X-Request-Timeout-Ms"] = str(PATIENCE_MS)
    # The description cannot express that a key is valid for one request.
    if _KEY.fullmatch(str(given.get("Idempotency-Key", ""))):
        given["Idempotency-Key"] = str(uuid4())
    # In JSON Schema 25.0 is an integer; this API refuses every fraction as written.
    amount = case.body.get("amount") if isinstance(case.body, dict) else None
    if isinstance(amount, float) and amount.is_integer():
        amount = case.body["amount"] = int(amount)
    # The provider decides which amounts of a currency it accepts: other tests cover this 422.
    if case.path == "/v1/payments" and isinstance(amount, int) and 1 <= amount <= 10**12 - 1:
        case.body["amount"] = 1000 + amount % 100 * 1000
        currency = str(case.body.get("currency"))
        if re.fullmatch("[a-z]{3}", currency) and currency not in _AT_PROVIDER:
            case.body["currency"] = "usd"
    # The description has no clock: a key that expires in the past is refused.
    if case.path == "/v1/api_keys" and isinstance(case.body, dict) and "expires_at" in case.body:
        case.body["expires_at"] = _in_time(case.body["expires_at"])
    if _SIGNED.fullmatch(str(given.get("Stripe-Signature", ""))):
        kwargs["auth"] = _sign


def _in_time(given: Any) -> Any:
    """The value; a time is moved to the future."""
    try:
        return "2999" + given[4:] if datetime.fromisoformat(given).tzinfo else given
    except (TypeError, ValueError):
        return given


def _sign(prepared: requests.PreparedRequest) -> requests.PreparedRequest:
    """Sign like the provider: over the exact bytes sent, at the current time."""
    body = prepared.body or b""
    stamp = str(int(time.time()))
    signed = stamp.encode() + b"." + (body if isinstance(body, bytes) else body.encode())
    mac = hmac.new(os.environ["STRIPE_WEBHOOK_SECRET"].encode(), signed, hashlib.sha256)
    prepared.headers["Stripe-Signature"] = f"t={stamp},v1={mac.hexdigest()}"
    return prepared


@schemathesis.check
def says_truly_that_it_cannot_serve(context: Any, response: Any, case: Any) -> None:
    """Accept 503 only with a code that this run allows, marked safe to repeat, and with Retry-After."""
    if response.status_code == 503:
        problem = response.json()
        allowed = os.environ.get("ALLOWED_503", "").split()
        assert problem["code"] in allowed, f"503 {problem['code']} while it could have served"
        assert problem["retry_safe"] is True
        assert problem["stage"] == "not_sent"
        assert int(response.headers["retry-after"][0]) >= 1
