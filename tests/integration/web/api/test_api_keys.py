"""Authentication: keys, scopes, and the separation of merchants."""

from __future__ import annotations

from collections.abc import Callable
from uuid import UUID, uuid4

import pytest
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from service.database.pool.pool import ConnectionPool
from service.payments.merchants import (
    DEFAULT_MERCHANT_ID,
    SCOPES,
    KeyStore,
    bootstrap,
    generate_key,
    hash_key,
    parse_key,
)
from service.resilience.deadline import Deadline
from tests.integration.web.api.conftest import PAYMENT, Connection

Ask = Callable[..., TestResponse]
MakeKey = Callable[..., str]


def list_with(client: FlaskClient, authorization: str | None) -> TestResponse:
    headers = {} if authorization is None else {"Authorization": authorization}
    return client.get("/v1/payments", headers=headers)


@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "",
        "Bearer",
        "Bearer x",
        "Basic aGY6aGY=",
        pytest.param(f"Bearer {generate_key('test')}", id="Bearer of nobody"),
        "Bearer ä",
    ],
)
def test_without_a_known_key_nobody_gets_in(client: FlaskClient, authorization: str | None) -> None:
    answer = list_with(client, authorization)

    assert (answer.status_code, answer.json["code"]) == (401, "unauthenticated")
    assert answer.headers["WWW-Authenticate"].startswith("Bearer")


@pytest.mark.parametrize("ending", ["swapped", "short", "long"])
def test_a_key_that_was_mistyped_is_refused(client: FlaskClient, api_key: str, ending: str) -> None:
    swapped = api_key[:-8] + api_key[-7] + api_key[-8] + api_key[-6:]
    typed = {"swapped": swapped, "short": api_key[:-1], "long": api_key + "0"}[ending]
    assert typed != api_key

    assert list_with(client, f"Bearer {typed}").status_code == 401
    assert parse_key(typed) is None


def test_the_right_id_with_another_secret_is_refused(
    client: FlaskClient, owner: Connection, api_key: str
) -> None:
    parsed = parse_key(api_key)
    assert parsed is not None
    with owner.cursor() as cursor:
        cursor.execute(
            "UPDATE api_keys SET secret_sha256 = %s WHERE key_id = %s",
            (hash_key(generate_key("test")), parsed[1]),
        )

    assert list_with(client, f"Bearer {api_key}").status_code == 401


def test_an_expired_key_is_refused(
    client: FlaskClient, merchant_id: UUID, make_key: MakeKey
) -> None:
    api_key = make_key(merchant_id, expires_in_s=-1)

    assert list_with(client, f"Bearer {api_key}").status_code == 401


@pytest.mark.parametrize(
    ("method", "path", "needed"),
    [
        ("POST", "/v1/payments", "payments"),
        ("GET", "/v1/payments", "read"),
        ("GET", f"/v1/payments/pay_{'0' * 32}", "read"),
        ("GET", f"/v1/payments/pay_{'0' * 32}/timeline", "read"),
    ],
)
def test_each_call_needs_its_own_scope(
    client: FlaskClient, merchant_id: UUID, make_key: MakeKey, method: str, path: str, needed: str
) -> None:
    others = tuple(scope for scope in SCOPES if scope != needed)
    api_key = make_key(merchant_id, scopes=others)

    answer = client.open(
        path,
        method=method,
        json=PAYMENT if method == "POST" else None,
        headers={"Authorization": f"Bearer {api_key}", "Idempotency-Key": "k"},
    )

    assert (answer.status_code, answer.json["code"]) == (403, "forbidden")


def test_another_merchants_payment_looks_like_none(
    client: FlaskClient, pay: Ask, make_key: MakeKey
) -> None:
    links = pay().json["links"]
    stranger = {"Authorization": f"Bearer {make_key(uuid4())}"}

    answers = [client.get(path, headers=stranger) for path in links.values()]

    assert [answer.status_code for answer in answers] == [404, 404]
    assert client.get("/v1/payments", headers=stranger).json["data"] == []


def test_two_merchants_may_use_the_same_idempotency_key(
    client: FlaskClient, pay: Ask, make_key: MakeKey
) -> None:
    mine = pay("order-1")
    theirs = client.post(
        "/v1/payments",
        json={**PAYMENT, "amount": 7},
        headers={"Authorization": f"Bearer {make_key(uuid4())}", "Idempotency-Key": "order-1"},
    )

    assert (mine.status_code, theirs.status_code) == (201, 201)
    assert mine.json["id"] != theirs.json["id"]


def test_the_bootstrap_key_is_made_once_and_opens_everything(
    owner: Connection, client: FlaskClient
) -> None:
    api_key = generate_key("test")

    for _ in range(2):
        bootstrap(owner, api_key, "test")

    assert list_with(client, f"Bearer {api_key}").status_code == 200
    with owner.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM merchants WHERE name = 'default'")
        assert cursor.fetchone() == (1,)
        cursor.execute("SELECT scopes FROM api_keys WHERE label = 'bootstrap'")
        assert cursor.fetchall() == [(list(SCOPES),)]


@pytest.mark.parametrize(
    "wrong", ["", "hf_test_x", pytest.param(generate_key("live"), id="another mode")]
)
def test_a_bootstrap_key_of_another_kind_is_refused_at_start(owner: Connection, wrong: str) -> None:
    with pytest.raises(ValueError, match="hf_test_"):
        bootstrap(owner, wrong, "test")


def test_a_key_is_stored_as_its_hash_and_can_be_revoked(
    pool: ConnectionPool, owner_url: str
) -> None:
    keys, deadline = KeyStore(pool), Deadline.after(60)
    made, api_key = keys.create(
        DEFAULT_MERCHANT_ID, deadline, mode="live", scopes=["read"], label="till 4"
    )

    found = keys.find(made.key_id, deadline)
    assert found is not None
    assert (found.is_live, found.scopes, found.label) == (True, frozenset({"read"}), "till 4")
    assert api_key.encode() not in found.secret_sha256
    assert api_key.startswith("hf_live_")

    assert found.touch_due
    keys.touch(made.key_id, deadline)
    assert keys.revoke(DEFAULT_MERCHANT_ID, made.key_id, deadline)
    assert not keys.revoke(DEFAULT_MERCHANT_ID, made.key_id, deadline)
    assert not keys.revoke(uuid4(), made.key_id, deadline)

    (listed,) = keys.of_merchant(DEFAULT_MERCHANT_ID, deadline)
    assert not listed.is_live
    assert not listed.touch_due
