"""Traffic for a local stack: merchants' requests in a mix, at a steady rate, whatever the answers."""

from __future__ import annotations

import contextlib
import http.client
import json
import threading
from collections import Counter
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

from service.lab.drills.callers import SteadyCallers

# The time limit of each caller, and the number of callers; more would measure this program.
ANSWER_TIMEOUT_S = 10.0
CALLERS_MAX = 64
# The numbers have no common factor, so that the kinds of requests do not coincide.
DECLINED_EVERY, REPLAYED_EVERY, MISMATCHED_EVERY, REFUNDED_EVERY, HELD_EVERY = 7, 5, 23, 11, 13


class Traffic:
    """Sends `per_s` payments a second while its `with` block runs."""

    def __init__(self, url: str, api_key: str, *, per_s: float) -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "", parts.port
        self._headers = {"Authorization": f"Bearer {api_key}", "Content-Type": "application/json"}
        self._lock = threading.Lock()
        self._answers: Counter[str] = Counter()
        self._callers = SteadyCallers([self._pay], per_s=per_s, most=CALLERS_MAX)

    def __enter__(self) -> Traffic:
        self._callers.begin()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # A payment has up to six requests, one after the other.
        self._callers.stop(within_s=6 * ANSWER_TIMEOUT_S)
        self._callers.close()

    def answered(self) -> Counter[str]:
        """The number of answers by status; "none" counts requests without an answer."""
        with self._lock:
            return Counter(self._answers)

    def _pay(self, number: int) -> None:
        """One customer's checkout, and the merchant's later actions on the payment."""
        key = str(uuid4())
        order: dict[str, Any] = {
            "amount": 100 + number % 9900,
            "currency": "eur" if number % 4 == 0 else "usd",
            "payment_method": "pm_card_visa",
        }
        if number % DECLINED_EVERY == 0:
            order["payment_method"] = "pm_card_visa_chargeDeclinedInsufficientFunds"
        if number % HELD_EVERY == 0:
            order["capture_method"] = "manual"
        _, payment = self._post("/v1/payments", order, key)
        if number % REPLAYED_EVERY == 0:
            self._post("/v1/payments", order, key)
        if number % MISMATCHED_EVERY == 0:
            self._post("/v1/payments", {**order, "amount": 99}, key)
        if payment.get("status") == "succeeded" and number % REFUNDED_EVERY == 0:
            self._post(f"/v1/payments/{payment['id']}/refunds", {"amount": 50}, str(uuid4()))
        if payment.get("status") == "requires_capture":
            self._post(f"/v1/payments/{payment['id']}/capture", {}, str(uuid4()))
        if "id" in payment:
            self._exchange("GET", f"/v1/payments/{payment['id']}", None, {})

    def _post(self, path: str, body: dict[str, Any], key: str) -> tuple[int | None, dict[str, Any]]:
        return self._exchange("POST", path, json.dumps(body), {"Idempotency-Key": key})

    def _exchange(
        self, method: str, path: str, body: str | None, headers: dict[str, str]
    ) -> tuple[int | None, dict[str, Any]]:
        connection = http.client.HTTPConnection(
            self._host, self._port or 80, timeout=ANSWER_TIMEOUT_S
        )
        status, document = None, None
        with contextlib.suppress(OSError, http.client.HTTPException, ValueError):
            connection.request(method, path, body, {**self._headers, **headers})
            answer = connection.getresponse()
            document = json.loads(answer.read())
            status = answer.status
        connection.close()
        with self._lock:
            self._answers[str(status or "none")] += 1
        return status, document if isinstance(document, dict) else {}
