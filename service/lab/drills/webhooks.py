"""Delivers the provider's webhooks badly: twice, in the wrong order, and about unknown payments."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import time
from collections.abc import Callable, Sequence
from uuid import uuid4

import requests

from service.ids import (
    payment_id_text,
)
from service.lab.drills.books import Row
from service.payments.merchants import DRILL_MERCHANT_ID
from service.resilience.deadline import Deadline

# Between two webhooks the run checks for a stop, so that faults end soon after it.
ANSWER_TIMEOUT_S = 1.0
# The wrong order: the end before the beginning, and a failure that the provider's books
# contradict. A service that trusts events instead of asking the provider is wrong afterwards.
TYPES = ("payment_intent.payment_failed", "payment_intent.succeeded", "payment_intent.created")


class WebhookDisorder:
    """Sends signed events about a run's payments, finished or not, and about unknown payments."""

    def __init__(self, secret: str | None) -> None:
        self._secret = secret

    def send(
        self, url: str, rows: Sequence[Row], deadline: Deadline, *, wait: Callable[[float], None]
    ) -> int:
        """Send each event twice, newest payment first, until the deadline; returns the accepted number.

        Returns 0 without a secret. Raises what `wait` raises when the run must end.
        """
        if self._secret is None:
            return 0
        about = [(payment_id_text(row[0]), row[4]) for row in reversed(rows)]
        about.append((f"pay_{uuid4().hex}", None))
        bodies = [_event(kind, *payment) for payment in about for kind in TYPES]
        accepted = 0
        with requests.Session() as session:
            session.trust_env = False
            for body in (body for body in bodies for _ in range(2)):
                wait(0.0)
                timeout_s = min(ANSWER_TIMEOUT_S, deadline.remaining_s())
                if not timeout_s:
                    break
                accepted += self._post(session, url, body, timeout_s)
        return accepted

    def _post(self, session: requests.Session, url: str, body: bytes, timeout_s: float) -> bool:
        sent_at = str(int(time.time()))
        signed = f"{sent_at}.".encode() + body
        digest = hmac.new((self._secret or "").encode(), signed, hashlib.sha256).hexdigest()
        headers = {
            "Content-Type": "application/json",
            "Stripe-Signature": f"t={sent_at},v1={digest}",
        }
        with contextlib.suppress(requests.RequestException):
            answer = session.post(
                f"{url}/v1/webhooks/stripe", data=body, headers=headers, timeout=timeout_s
            )
            return answer.status_code == 200
        return False


def _event(kind: str, payment_id: str, provider_ref: str | None) -> bytes:
    return json.dumps(
        {
            "id": f"evt_{uuid4().hex}",
            "object": "event",
            "type": kind,
            "data": {
                "object": {
                    "id": provider_ref or f"pi_{uuid4().hex[:24]}",
                    "object": "payment_intent",
                    "metadata": {
                        "payment_id": payment_id,
                        "merchant_id": str(DRILL_MERCHANT_ID),
                    },
                }
            },
        }
    ).encode()
