"""Webhook endpoints over REST: their owners, refused addresses, and a secret shown once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import UUID, uuid4

import pytest
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from tests.integration.web.api.conftest import Connection

URL = "https://hooks.example/holdfast"
Ask = Callable[..., TestResponse]


@pytest.fixture
def ask(client: FlaskClient, api_key: str) -> Ask:
    """A call with the merchant's own key."""

    def ask(method: str, path: str, body: Any = None, key: str = api_key) -> TestResponse:
        headers = {"Authorization": f"Bearer {key}"}
        return client.open(path, method=method, json=body, headers=headers)

    return ask


def test_endpoint_life_cycle_shows_its_secret_once(ask: Ask) -> None:
    made = ask("POST", "/v1/webhook_endpoints", {"url": URL})
    path = made.headers["Location"]

    assert (made.status_code, made.json["event_types"]) == (201, ["*"])
    assert made.json["secret"].startswith("whsec_")
    assert "secret" not in ask("GET", path).json
    assert [e["id"] for e in ask("GET", "/v1/webhook_endpoints").json["data"]] == [made.json["id"]]

    paused = ask("PATCH", path, {"status": "paused", "event_types": ["payment.succeeded"]})
    assert (paused.json["status"], paused.json["paused_reason"]) == ("paused", "asked")
    assert (paused.json["url"], paused.json["event_types"]) == (URL, ["payment.succeeded"])

    rotated = ask("POST", f"{path}/rotate_secret")
    assert rotated.json["secret"] != made.json["secret"]

    assert ask("DELETE", path).status_code == 204
    assert {ask(method, path, {}).status_code for method in ("GET", "PATCH", "DELETE")} == {404}


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"url": "http://hooks.example/"}, "url"),
        ({"url": "https://10.0.0.1/"}, "url"),
        ({"url": "https://hooks.example:25/"}, "url"),
        ({"url": URL, "event_types": ["payment.sending"]}, "event_types"),
        ({"url": URL, "event_types": []}, "event_types"),
        ({"url": URL, "secret": "mine"}, "secret"),
        ({}, "url"),
    ],
)
def test_what_cannot_be_told_is_refused_by_its_field(
    ask: Ask, count: Callable[[str], int], body: dict[str, Any], field: str
) -> None:
    refused = ask("POST", "/v1/webhook_endpoints", body)

    assert (refused.status_code, refused.json["code"]) == (422, "validation_failed")
    assert [wrong["field"] for wrong in refused.json["fields"]] == [field]
    assert count("webhook_endpoints") == 0


def test_another_merchants_endpoint_and_event_look_like_none(
    ask: Ask, pay: Ask, make_key: Callable[..., str], owner: Connection, merchant_id: UUID
) -> None:
    path = ask("POST", "/v1/webhook_endpoints", {"url": URL}).headers["Location"]
    pay()
    with owner.cursor() as cursor:
        cursor.execute(
            "SELECT event_id FROM events WHERE merchant_id = %s AND type = 'payment.succeeded'",
            (str(merchant_id),),
        )
        ((event_id,),) = cursor.fetchall()
    event = f"/v1/events/evt_{UUID(event_id).hex}/redeliver"
    stranger = make_key(uuid4())

    assert ask("POST", event).json["endpoints"] == [path.rpartition("/")[2]]
    assert ask("POST", event).status_code == 202
    for method, address in (
        *(("GET", path), ("PATCH", path), ("DELETE", path)),
        *(("POST", f"{path}/rotate_secret"), ("POST", event)),
    ):
        assert ask(method, address, {}, key=stranger).status_code == 404
    assert ask("GET", "/v1/webhook_endpoints", key=stranger).json["data"] == []


@pytest.mark.parametrize("event", ["evt_" + "0" * 32, "evt_x", "pay_" + "0" * 32])
def test_an_event_that_never_was_cannot_be_told_again(ask: Ask, event: str) -> None:
    assert ask("POST", f"/v1/events/{event}/redeliver").status_code == 404


def test_an_event_that_nobody_hears_of_is_not_promised(
    ask: Ask, pay: Ask, client: FlaskClient
) -> None:
    pay()
    events = ask("GET", "/v1/events").json["data"]

    refused = ask("POST", f"/v1/events/{events[-1]['id']}/redeliver")

    assert (refused.status_code, refused.json["code"]) == (409, "wrong_state")


@pytest.mark.parametrize(
    ("method", "path", "needed"),
    [
        ("POST", "/v1/webhook_endpoints", "operator"),
        ("GET", "/v1/webhook_endpoints", "read"),
        ("PATCH", f"/v1/webhook_endpoints/we_{'0' * 32}", "operator"),
        ("DELETE", f"/v1/webhook_endpoints/we_{'0' * 32}", "operator"),
        ("POST", f"/v1/webhook_endpoints/we_{'0' * 32}/rotate_secret", "operator"),
        ("POST", f"/v1/events/evt_{'0' * 32}/redeliver", "operator"),
        ("POST", "/v1/api_keys", "operator"),
        ("GET", "/v1/api_keys", "operator"),
        ("DELETE", "/v1/api_keys/000000000000", "operator"),
    ],
)
def test_each_call_needs_its_own_scope(
    ask: Ask, make_key: Callable[..., str], merchant_id: UUID, method: str, path: str, needed: str
) -> None:
    scopes = {"payments", "refunds", "read", "operator"} - {needed}
    without = make_key(merchant_id, scopes=tuple(scopes))

    assert ask(method, path, {"url": URL}, key=without).status_code == 403
