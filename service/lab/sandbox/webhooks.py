"""Signed webhooks to one endpoint, from one thread, retried until the endpoint accepts them."""

from __future__ import annotations

import hashlib
import heapq
import hmac
import logging
import threading
from dataclasses import dataclass
from time import monotonic, time

import requests

log = logging.getLogger(__name__)

# Some minutes of a busy run; during a longer outage of the endpoint the newest are dropped.
WAITING_MAX = 10_000
# The pauses before each retry: short for a restart, then long enough for any local run.
RETRY_AFTER_S = (1.0, 5.0, 30.0, 120.0, 600.0, 3600.0)
TIMEOUT_S = (2.0, 10.0)


@dataclass(frozen=True, slots=True)
class WebhookEvent:
    """One event, sent byte for byte the same at every attempt."""

    event_type: str
    payload: bytes
    attempt: int = 0


def signature(payload: bytes, *, secret: str, at_s: int) -> str:
    """The `Stripe-Signature` header: HMAC-SHA256 over the time and the raw body."""
    digest = hmac.new(secret.encode(), b"%d." % at_s + payload, hashlib.sha256).hexdigest()
    return f"t={at_s},v1={digest}"


class Webhooks:
    """Delivers events in the background. The queue is in memory: webhooks are hints, and a receiver
    that needs certainty asks the API."""

    def __init__(self, *, url: str, secret: str) -> None:
        self._url = url
        self._secret = secret
        self._waiting: list[tuple[float, int, WebhookEvent]] = []
        self._count = 0
        self._changed = threading.Condition()
        threading.Thread(target=self._run, name="webhooks", daemon=True).start()

    def announce(self, event_type: str, event_json: str) -> None:
        """Queue an event; never blocks."""
        self._put(WebhookEvent(event_type, event_json.encode()), due_s=monotonic())

    def _put(self, event: WebhookEvent, *, due_s: float) -> None:
        with self._changed:
            if len(self._waiting) >= WAITING_MAX:
                log.warning("webhook.dropped", extra={"event_type": event.event_type})
                return
            self._count += 1
            heapq.heappush(self._waiting, (due_s, self._count, event))
            self._changed.notify()

    def _run(self) -> None:
        with requests.Session() as session:
            session.trust_env = False
            while True:
                event = self._next()
                if not self._deliver(session, event):
                    self._again_later(event)

    def _next(self) -> WebhookEvent:
        with self._changed:
            while not self._waiting or self._waiting[0][0] > monotonic():
                wait_s = self._waiting[0][0] - monotonic() if self._waiting else None
                self._changed.wait(wait_s)
            return heapq.heappop(self._waiting)[2]

    def _deliver(self, session: requests.Session, event: WebhookEvent) -> bool:
        signed = signature(event.payload, secret=self._secret, at_s=int(time()))
        headers = {"Content-Type": "application/json", "Stripe-Signature": signed}
        try:
            answer = session.post(
                self._url,
                data=event.payload,
                headers=headers,
                timeout=TIMEOUT_S,
                allow_redirects=False,
            )
        except requests.RequestException as error:
            log.info("webhook.failed", extra={"reason": type(error).__name__})
            return False
        return answer.ok

    def _again_later(self, event: WebhookEvent) -> None:
        if event.attempt >= len(RETRY_AFTER_S):
            log.warning("webhook.given_up", extra={"event_type": event.event_type})
            return
        pause_s = RETRY_AFTER_S[event.attempt]
        again = WebhookEvent(event.event_type, event.payload, event.attempt + 1)
        self._put(again, due_s=monotonic() + pause_s)
