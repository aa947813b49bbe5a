"""The sandbox signs webhooks like Stripe, and sends them until they are accepted."""

from __future__ import annotations

import hashlib
import hmac
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import Queue

import pytest

from tests.support.processes.sandbox_process import SandboxProcess, running_sandbox

SECRET = "whsec_sandbox_test"
CARD = {"amount": "1200", "currency": "usd", "payment_method": "pm_card_visa"}


class Receiver:
    """A webhook endpoint; refuses the first `refusals` deliveries."""

    def __init__(self, refusals: int = 0) -> None:
        self.received: Queue[tuple[str, bytes]] = Queue()
        self.refusals = refusals

    def handler(receiver) -> type[BaseHTTPRequestHandler]:
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.received.put((self.headers["Stripe-Signature"], body))
                receiver.refusals -= 1
                self.send_response(503 if receiver.refusals >= 0 else 200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_words: object) -> None:
                pass

        return Handler

    def next(self) -> dict:
        return json.loads(self.received.get(timeout=60)[1])


@contextmanager
def receiving(home: Path, receiver: Receiver) -> Iterator[SandboxProcess]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), receiver.handler())
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}/v1/webhooks/stripe"
    try:
        with running_sandbox(home, webhook_url=url, webhook_secret=SECRET) as sandbox:
            yield sandbox
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def receiver() -> Receiver:
    return Receiver()


@pytest.fixture
def sending(tmp_path: Path, receiver: Receiver) -> Iterator[SandboxProcess]:
    with receiving(tmp_path, receiver) as sandbox:
        yield sandbox


def test_an_event_is_signed_over_its_raw_body(sending, receiver):
    sending.stripe("POST", "/payment_intents", key="key-1", **CARD, confirm="true")

    signature, body = receiver.received.get(timeout=60)

    parts = dict(part.split("=", 1) for part in signature.split(","))
    signed = hmac.new(SECRET.encode(), f"{parts['t']}.".encode() + body, hashlib.sha256)
    assert parts["v1"] == signed.hexdigest()
    assert abs(int(parts["t"]) - time.time()) < 60
    event = json.loads(body)
    assert event["type"] == "payment_intent.succeeded"
    assert event["data"]["object"]["status"] == "succeeded"
    assert event["request"]["idempotency_key"] == "key-1"


def test_each_step_of_a_payment_is_told(sending, receiver):
    held = sending.stripe(
        "POST", "/payment_intents", **CARD, confirm="true", capture_method="manual"
    ).json()
    sending.stripe("POST", f"/payment_intents/{held['id']}/capture")
    sending.stripe("POST", "/refunds", payment_intent=held["id"])
    declined = CARD | {"payment_method": "pm_card_chargeDeclined"}
    sending.stripe("POST", "/payment_intents", **declined, confirm="true")
    asking = CARD | {"payment_method": "pm_card_authenticationRequired"}
    asked = sending.stripe("POST", "/payment_intents", **asking, confirm="true").json()
    sending.stripe("POST", f"/payment_intents/{asked['id']}/cancel")

    told = [receiver.next()["type"] for _ in range(8)]

    assert told == [
        "payment_intent.amount_capturable_updated",
        "charge.captured",
        "payment_intent.succeeded",
        "refund.created",
        "charge.refunded",
        "payment_intent.payment_failed",
        "payment_intent.requires_action",
        "payment_intent.canceled",
    ]


def test_a_refused_event_comes_again_with_the_same_id(tmp_path):
    receiver = Receiver(refusals=1)
    with receiving(tmp_path, receiver) as sandbox:
        sandbox.stripe("POST", "/payment_intents", **CARD, confirm="true")

        assert receiver.next()["id"] == receiver.next()["id"]
