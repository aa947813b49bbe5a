"""Each key has a separate rate; over it no row is written, and every answer has the remainder."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from uuid import UUID

import pytest
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from service.settings import Settings
from tests.integration.web.api.conftest import settings as usual_settings

Ask = Callable[..., TestResponse]


@pytest.fixture(scope="module")
def settings(usual: Settings) -> Settings:
    # Slow enough that nothing is paid off while a test runs.
    return dataclasses.replace(usual, rate_limit_per_s=0.01, rate_limit_burst=3)


usual = pytest.fixture(scope="module", name="usual")(usual_settings.__wrapped__)


def test_key_over_its_rate_is_refused_before_any_write(
    pay: Ask, count: Callable[[str], int]
) -> None:
    paid = [pay(f"order-{n}").status_code for n in range(3)]
    before = count("payments")

    refused = pay("order-4")

    assert (paid, refused.status_code, refused.json["code"]) == ([201] * 3, 429, "rate_limited")
    assert refused.json["retry_safe"] is True
    assert 90 <= int(refused.headers["Retry-After"]) <= 100
    assert (before, count("payments"), count("idempotency_keys")) == (3, 3, 3)


def test_every_answer_says_what_is_left(get: Ask) -> None:
    first, second = get("/v1/payments"), get("/v1/payments/pay_x")

    assert first.headers["RateLimit-Policy"] == '"key";q=3;w=300'
    assert re.fullmatch(r'"key";r=2;t=(99|100)', first.headers["RateLimit"])
    assert (second.status_code, second.headers["RateLimit-Remaining"]) == (404, "1")
    assert (second.headers["RateLimit-Limit"], second.headers["RateLimit-Reset"]) == ("3", "200")


def test_one_keys_rate_is_not_anothers(
    client: FlaskClient, get: Ask, make_key: Callable[..., str], merchant_id: UUID
) -> None:
    while get("/v1/payments").status_code == 200:
        pass

    other = {"Authorization": f"Bearer {make_key(merchant_id)}"}

    assert client.get("/v1/payments", headers=other).status_code == 200


def test_who_is_not_known_is_told_nothing_of_rates(client: FlaskClient) -> None:
    answer = client.get("/v1/payments", headers={"Authorization": "Bearer x"})

    assert answer.status_code == 401
    assert not any(name.startswith("RateLimit") for name, _ in answer.headers)
