"""API keys over REST: made with no more rights than the asker's, shown once, replaced, revoked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import UUID, uuid4

import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from service.payments.merchants import KeyStore, generate_key
from service.web.http import auth
from tests.integration.web.api.conftest import PAYMENT, Connection

Ask = Callable[..., TestResponse]


@pytest.fixture
def ask(client: FlaskClient, api_key: str) -> Ask:
    def ask(method: str, path: str, body: Any = None, key: str = api_key) -> TestResponse:
        headers = {"Authorization": f"Bearer {key}", "Idempotency-Key": "order-1"}
        return client.open(path, method=method, json=body, headers=headers)

    return ask


def test_a_key_is_replaced_without_a_moment_without_one(
    ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The cache is off, so that a revocation takes effect at once.
    monkeypatch.setattr(auth, "REMEMBER_S", 0.0)
    old = ask("POST", "/v1/api_keys", {"scopes": ["read"], "label": "till 4"}).json
    new = ask("POST", "/v1/api_keys", {"scopes": ["read"], "label": "till 4"}).json

    assert [ask("GET", "/v1/payments", key=key["key"]).status_code for key in (old, new)] == [
        200
    ] * 2
    assert ask("DELETE", f"/v1/api_keys/{old['id']}").status_code == 204

    assert [ask("GET", "/v1/payments", key=key["key"]).status_code for key in (old, new)] == [
        401,
        200,
    ]
    listed = {key["id"]: key for key in ask("GET", "/v1/api_keys").json["data"]}
    assert (listed[old["id"]]["status"], listed[new["id"]]["status"]) == ("revoked", "live")
    assert listed[new["id"]]["last_used_at"] is not None
    assert all("key" not in key for key in listed.values())


def test_a_key_makes_none_that_may_do_more_than_itself(
    ask: Ask, make_key: Callable[..., str], merchant_id: UUID, count: Callable[[str], int]
) -> None:
    weak = make_key(merchant_id, scopes=("operator",))
    before = count("api_keys")

    refused = ask("POST", "/v1/api_keys", {"scopes": ["operator", "payments"]}, key=weak)

    assert (refused.status_code, count("api_keys")) == (403, before)


def test_a_key_does_not_revoke_itself_nor_anothers(
    ask: Ask, api_key: str, make_key: Callable[..., str]
) -> None:
    own_id = api_key.split("_")[2]
    others_id = make_key(uuid4()).split("_")[2]

    assert ask("DELETE", f"/v1/api_keys/{own_id}").status_code == 409
    assert ask("DELETE", f"/v1/api_keys/{others_id}").status_code == 404
    assert ask("DELETE", "/v1/api_keys/%00").status_code == 404


@pytest.mark.parametrize(
    "body",
    [
        {"scopes": []},
        {"scopes": ["root"]},
        {"scopes": ["read"], "expires_at": "2020-01-01T00:00:00Z"},
        {"scopes": ["read"], "mode": "live"},
        {},
    ],
)
def test_a_key_that_makes_no_sense_is_refused(ask: Ask, body: dict[str, Any]) -> None:
    assert ask("POST", "/v1/api_keys", body).status_code == 422


def test_a_wrong_checksum_is_refused_without_the_database(
    ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[str] = []
    monkeypatch.setattr(KeyStore, "find", lambda self, key_id, deadline: looked.append(key_id))
    mistyped = generate_key("test")[:-1] + "~"
    swapped = generate_key("test")[:-6] + "000000"

    for key in (mistyped, swapped):
        assert ask("GET", "/v1/payments", key=key).status_code == 401
    assert looked == []

    # A key with a valid checksum is looked up in the database.
    assert ask("GET", "/v1/payments", key=generate_key("test")).status_code == 401
    assert len(looked) == 1


def test_merchant_with_too_many_open_payments_gets_no_new_one(
    app: Flask, ask: Ask, owner: Connection, merchant_id: UUID, count: Callable[[str], int]
) -> None:
    with owner.cursor() as cursor:
        cursor.execute(
            "UPDATE merchants SET has_too_many_open = true WHERE merchant_id = %s",
            (str(merchant_id),),
        )

    refused = ask("POST", "/v1/payments", PAYMENT)

    assert (refused.status_code, refused.json["code"]) == (429, "rate_limited")
    assert (refused.json["retry_safe"], refused.headers["Retry-After"]) == (True, "5")
    assert (count("payments"), count("idempotency_keys")) == (0, 0)
    assert ask("GET", "/v1/payments").status_code == 200
