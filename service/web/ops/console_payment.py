"""The console's test payment: made over REST like any caller's, with the operator's own key."""

from __future__ import annotations

import http.client
import json
from time import monotonic
from typing import Any
from uuid import uuid4

from service.web.ops.plane import Instance

# As long as a caller of ours waits.
PAY_WAIT_S = 10.0


def make_test_payment(instance: Instance, authorization: str) -> dict[str, Any]:
    """The request and its answer; without an answer, the failure and its text."""
    key = f"console-{uuid4()}"
    body = {
        "amount": 100,
        "currency": "usd",
        "payment_method": instance.test_payment_method,
        "reference": key,
        "metadata": {"made_by": "console"},
    }
    headers = {
        "Authorization": authorization,
        "Content-Type": "application/json",
        "Idempotency-Key": key,
    }
    sent = {"idempotency_key": key, "body": body}
    begun_s = monotonic()
    try:
        answer, document = _post(instance, body, headers)
    except (OSError, http.client.HTTPException, ValueError) as error:
        # The list of payments shows whether it was accepted, under this reference.
        failure = f"{type(error).__name__}: {error}"
        return sent | {"status": None, "answer": None, "failure": failure, "ms": _ms(begun_s)}
    return sent | {
        "status": answer.status,
        "answer": document,
        "failure": None,
        "ms": _ms(begun_s),
        "request_id": answer.headers["X-Request-Id"],
    }


def _post(
    instance: Instance, body: dict[str, Any], headers: dict[str, str]
) -> tuple[http.client.HTTPResponse, Any]:
    connection = http.client.HTTPConnection(
        instance.payments_host, instance.payments_port, timeout=PAY_WAIT_S
    )
    try:
        connection.request("POST", "/v1/payments", body=json.dumps(body), headers=headers)
        answer = connection.getresponse()
        return answer, json.loads(answer.read())
    finally:
        connection.close()


def _ms(begun_s: float) -> float:
    return round((monotonic() - begun_s) * 1000, 1)
