"""POST /v1/webhooks/stripe: signed, stored once, answered."""

from __future__ import annotations

import hashlib
import hmac
import json
import time
from collections.abc import Callable
from uuid import UUID, uuid4

import pytest
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from service.web.server.framing import MAX_EVENT_BYTES
from tests.integration.web.api.conftest import WEBHOOK_SECRET, Connection

Send = Callable[..., TestResponse]


def sign(body: bytes, *, secret: str = WEBHOOK_SECRET, age_s: int = 0) -> str:
    stamp = str(int(time.time()) - age_s)
    digest = hmac.new(secret.encode(), f"{stamp}.".encode() + body, hashlib.sha256).hexdigest()
    return f"t={stamp},v1={digest}"


def event(event_id: str, **metadata: str) -> bytes:
    return json.dumps(
        {
            "id": event_id,
            "type": "payment_intent.succeeded",
            "data": {"object": {"id": "pi_77", "metadata": metadata}},
        }
    ).encode()


@pytest.fixture
def send(client: FlaskClient) -> Send:
    def send(body: bytes, signature: str | None = None) -> TestResponse:
        headers = {"Stripe-Signature": sign(body) if signature is None else signature}
        return client.post("/v1/webhooks/stripe", data=body, headers=headers)

    return send


@pytest.fixture
def inbox(owner: Connection) -> Callable[[str], list[tuple[object, ...]]]:
    def inbox(event_id: str) -> list[tuple[object, ...]]:
        with owner.cursor() as cursor:
            cursor.execute(
                "SELECT type, provider_ref, merchant_id::text, payment_id::text"
                " FROM webhook_inbox WHERE event_id = %s",
                (event_id,),
            )
            return cursor.fetchall()

    return inbox


def test_an_event_is_stored_once_however_often_it_comes(
    send: Send, inbox: Callable[[str], list[tuple[object, ...]]], merchant_id: UUID
) -> None:
    payment_id = uuid4()
    body = event("evt_1", payment_id=f"pay_{payment_id.hex}", merchant_id=str(merchant_id))

    answers = [send(body), send(body)]

    assert [(answer.status_code, answer.json) for answer in answers] == [
        (200, {"received": True}),
        (200, {"received": True}),
    ]
    assert inbox("evt_1") == [
        ("payment_intent.succeeded", "pi_77", str(merchant_id), str(payment_id))
    ]


def test_two_secrets_may_sign_while_one_replaces_the_other(send: Send) -> None:
    body = event("evt_2")
    header = f"{sign(body, secret='the old one')},{sign(body).split(',')[1]}"

    assert send(body, header).status_code == 200


@pytest.mark.parametrize(
    "make_header",
    [
        lambda body: "",
        lambda body: "t=1,v1=",
        lambda body: "t=,v1=abc",
        lambda body: f"t={10**13},v1=abc",
        lambda body: sign(body, secret="guessed"),
        lambda body: sign(body + b" "),
        lambda body: sign(body, age_s=301),
        lambda body: sign(body, age_s=-302),
        lambda body: sign(body).replace("v1=", "v0="),
        lambda body: sign(body).replace("t=", "t=1,t="),
        lambda body: "t=9,v1=ä",
    ],
)
def test_a_forged_or_replayed_event_is_refused(
    send: Send,
    inbox: Callable[[str], list[tuple[object, ...]]],
    make_header: Callable[[bytes], str],
) -> None:
    body = event("evt_forged")

    answer = send(body, make_header(body))

    assert (answer.status_code, answer.json["code"]) == (400, "signature_invalid")
    assert inbox("evt_forged") == []


NOT_FOR_US = [
    *(
        b"",
        b"{",
        b"[]",
        b'"x"',
        b"{}",
        b"null",
        b"\xff\xfe",
        b"[" * 60000,
        b'{"id": ' + b"9" * 60000,
    ),
    b'{"id": 1, "type": "x", "data": {"object": {"id": "y"}}}',
    b'{"id": "evt_none", "type": "a\\u0000", "data": {"object": {"id": "y"}}}',
    b'{"id": "evt_none", "type": "balance.available", "data": {"object": {"object": "balance"}}}',
    b'{"id": "evt_none", "type": "x", "data": null}',
    b'{"id": "evt_none", "type": "x", "data": {"object": "pi_1"}}',
    b'{"id": "evt_none", "type": "x", "data": {"object": {"id": 7, "metadata": []}}}',
    b'{"id": "evt_none", "type": "x", "data": {"object": {"id": null, "metadata": {"a": {}}}}}',
    b'{"id": "evt_none", "object": "v2.core.event", "type": "v2.core.account.created"}',
    b'{"id": "evt_none", "object": "v2.core.event", "type": "x", "related_object": null}',
]


@pytest.mark.parametrize("body", NOT_FOR_US)
def test_signed_body_that_is_not_for_us_is_taken_and_dropped(
    send: Send, inbox: Callable[[str], list[tuple[object, ...]]], body: bytes
) -> None:
    answer = send(body)

    assert (answer.status_code, answer.json) == (200, {"received": True})
    assert inbox("evt_none") == []


@pytest.mark.parametrize("body", NOT_FOR_US)
def test_unsigned_body_is_refused_whatever_it_is(send: Send, body: bytes) -> None:
    answer = send(body, sign(body, secret="guessed"))

    assert (answer.status_code, answer.json["code"]) == (400, "signature_invalid")


@pytest.mark.parametrize(
    "more",
    [
        {"object": "v2.core.event", "related_object": {"id": "pi_77", "type": "payment_intent"}},
        {"data": {"object": {"id": "ch_1", "payment_intent": "pi_77"}}},
        {"data": {"object": {"id": "ch_1", "payment_intent": {"id": "pi_77"}}}},
        {"data": {"object": {"id": "pi_77", "metadata": {"merchant_id": "9" * 200}}}},
        {"data": {"object": {"id": "pi_77", "metadata": {"payment_id": 10**400}}}},
    ],
)
def test_event_of_any_shape_hints_at_its_object(
    send: Send, inbox: Callable[[str], list[tuple[object, ...]]], more: dict[str, object]
) -> None:
    body = json.dumps({"id": "evt_shape", "type": "x.y", **more}).encode()

    assert send(body).status_code == 200
    assert inbox("evt_shape") == [("x.y", "pi_77", None, None)]


def test_large_event_is_stored(
    send: Send, inbox: Callable[[str], list[tuple[object, ...]]]
) -> None:
    body = event("evt_large", note="x" * (MAX_EVENT_BYTES - 1000))

    assert send(body).status_code == 200
    assert len(inbox("evt_large")) == 1
    assert send(body + b" " * 2000).status_code == 413


def test_only_known_providers_have_a_door(client: FlaskClient) -> None:
    assert client.post("/v1/webhooks/nobody").status_code == 404
