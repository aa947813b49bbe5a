"""The provider's webhooks as they sometimes come: twice, in the wrong order, and about nothing."""

from __future__ import annotations

import hashlib
import hmac
import json
import time
from uuid import uuid4

import requests

from service.simulation.load import Call
from service.simulation.store import DRILL_MERCHANT_ID

ANSWER_TIMEOUT_S = 5.0
PAYMENTS_MAX = 20
# As they must not come: the end before the beginning, and a failure after a success.
_TYPES = ("payment_intent.succeeded", "payment_intent.payment_failed", "payment_intent.created")


class WebhookDisorder:
    """Sends signed events about payments that are long done."""

    def __init__(self, secret: str | None) -> None:
        self._secret = secret

    def send(self, url: str, calls: list[Call]) -> int:
        """Each event twice, newest payment first; how many were accepted."""
        if self._secret is None:
            return 0
        known = [call.payment_id for call in calls if call.outcome == "succeeded"]
        accepted = 0
        with requests.Session() as session:
            session.trust_env = False
            for payment_id in reversed(known[-PAYMENTS_MAX:]):
                for kind in _TYPES:
                    body = _event(kind, payment_id or "")
                    for _ in range(2):
                        accepted += self._post(session, url, body)
        return accepted

    def _post(self, session: requests.Session, url: str, body: bytes) -> bool:
        sent_at = str(int(time.time()))
        signed = f"{sent_at}.".encode() + body
        digest = hmac.new((self._secret or "").encode(), signed, hashlib.sha256).hexdigest()
        answer = session.post(
            f"{url}/v1/webhooks/stripe",
            data=body,
            headers={
                "Content-Type": "application/json",
                "Stripe-Signature": f"t={sent_at},v1={digest}",
            },
            timeout=ANSWER_TIMEOUT_S,
        )
        return answer.status_code == 200


def _event(kind: str, payment_id: str) -> bytes:
    return json.dumps(
        {
            "id": f"evt_{uuid4().hex}",
            "object": "event",
            "type": kind,
            "data": {
                "object": {
                    "id": f"pi_{uuid4().hex[:24]}",
                    "object": "payment_intent",
                    "metadata": {
                        "payment_id": payment_id,
                        "merchant_id": str(DRILL_MERCHANT_ID),
                    },
                }
            },
        }
    ).encode()
