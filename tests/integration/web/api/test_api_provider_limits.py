"""A request that the payment provider cannot represent is 422 before anything is stored."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import uuid4

import pytest
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from service.providers.base import Outcome, OutcomeKind, ProviderDecline, Stage
from service.providers.stripe.currencies import STRIPE_AMOUNTS
from service.web.api.fields import MAX_METADATA_ENTRIES
from service.web.http.problem_schemas import (
    Problem,
)
from tests.support.providers.booked_provider import BookedProvider

Ask = Callable[..., TestResponse]


@pytest.fixture(autouse=True)
def _stripes_amounts(provider: BookedProvider) -> None:
    provider.amounts = STRIPE_AMOUNTS


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"amount": 5124, "currency": "kwd"}, "amount"),
        ({"amount": 49}, "amount"),
        ({"amount": 100_000_000}, "amount"),
        ({"amount": 1_000_000, "currency": "isk"}, "amount"),
        ({"amount": 5000, "currency": "iqd"}, "currency"),
    ],
)
def test_an_unfit_amount_consumes_nothing(pay, count, provider, fields, named):
    answer = pay("key", **fields)
    problem = Problem.model_validate(answer.json)

    assert (answer.status_code, problem.code) == (422, "amount_not_representable")
    assert [field.field for field in problem.fields or []] == [named]
    assert (provider.calls, count("payments"), count("idempotency_keys")) == ([], 0, 0)
    assert pay("key").status_code == 201


def test_a_used_key_tells_what_became_of_it(pay, provider):
    provider.amounts = type(STRIPE_AMOUNTS)()
    first = pay("key", amount=7)
    provider.amounts = STRIPE_AMOUNTS

    again, other = pay("key", amount=7), pay("key", amount=8)

    assert again.json["id"] == first.json["id"]
    assert other.json["code"] == "idempotency_key_reused"


@pytest.mark.parametrize(("kind", "method"), [("capture", "manual"), ("refunds", "automatic")])
def test_an_unfit_part_reserves_nothing(client: FlaskClient, api_key, pay, kind, method):
    payment = pay(amount=5120, currency="kwd", capture_method=method).headers["Location"]

    def move(amount: int) -> Any:
        headers = {"Authorization": f"Bearer {api_key}", "Idempotency-Key": str(uuid4())}
        return client.post(f"{payment}/{kind}", json={"amount": amount}, headers=headers)

    refused = move(1234)

    assert (refused.status_code, refused.json["code"]) == (422, "amount_not_representable")
    assert "1230 or 1240" in refused.json["fields"][0]["reason"]
    assert move(5120).status_code in (200, 201)


@pytest.mark.parametrize(
    "metadata",
    [
        {"merchant_id]z": "other"},
        {"payment_id]z": "other"},
        {"a[b": "c"},
        {"payment_id": "pay_1"},
        {"merchant_id": "m"},
        {"key_digest": "d"},
        {"reference": "r"},
        {"holdfast_digest": "d"},
        {"empty": ""},
        {"a": "b" * 501},
        {"k" * 41: "v"},
        {"line": "a\nb"},
        {"nul": "a\x00b"},
        {"half": "\ud800"},
        {f"k{n}": "v" for n in range(MAX_METADATA_ENTRIES + 1)},
    ],
)
def test_metadata_that_cannot_be_carried_is_refused(pay, count, metadata):
    answer = pay(metadata=metadata)

    assert (answer.status_code, answer.json["code"]) == (422, "validation_failed")
    assert count("idempotency_keys") == 0


def test_metadata_is_carried_up_to_the_limit(pay):
    metadata = {f"k{n:02}" + "é" * 37: "ü" * 500 for n in range(20)} | {
        f"m{n}": "v" for n in range(MAX_METADATA_ENTRIES - 20)
    }

    assert pay(metadata=metadata).status_code == 201


@pytest.mark.parametrize(
    "text", ["a b", "a\nb", "a\x00", "\ud800", "", "x" * 256, "pm_ü", "pm\u202e"]
)
@pytest.mark.parametrize("field", ["payment_method", "customer"])
def test_an_unfit_token_is_refused(pay, field, text):
    assert pay(**{field: text}).status_code == 422


REFUSED = Outcome(
    OutcomeKind.DECLINED,
    Stage.ANSWERED,
    decline=ProviderDecline(
        "resource_missing", "No such customer.", is_request=True, field="customer"
    ),
)


@pytest.mark.parametrize("confirms", [(REFUSED,)])
def test_a_refused_request_is_no_declined_card(pay):
    answer = pay(customer="cus_1")
    problem = Problem.model_validate(answer.json)

    assert (answer.status_code, problem.code) == (402, "request_refused")
    assert problem.decline is not None
    assert (problem.decline.type, problem.decline.field) == ("request", "customer")
