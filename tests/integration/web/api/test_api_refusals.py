"""Requests that are refused on arrival: never stored, echoed or logged."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from time import monotonic

import pytest
from flask import Flask
from flask.testing import FlaskClient
from prometheus_client import REGISTRY
from werkzeug.test import TestResponse

from service.app.data_plane import (
    create_app,
)
from service.settings import Settings
from service.web.http import request_scope
from service.web.http.problem_schemas import (
    Problem,
)
from service.web.http.problems import register_problems
from service.web.http.request_scope import ARRIVED_S
from tests.integration.web.api.conftest import PAYMENT
from tests.support.providers.booked_provider import BookedProvider

CARD = "4242424242424242"
Ask = Callable[..., TestResponse]


def body(**fields: object) -> bytes:
    return json.dumps({**PAYMENT, **fields}).encode()


@pytest.fixture
def post(client: FlaskClient, api_key: str) -> Ask:
    def post(sent: bytes, **headers: str) -> TestResponse:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        auth = {"Authorization": f"Bearer {api_key}", "Idempotency-Key": "k", **named}
        return client.post("/v1/payments", data=sent, content_type="application/json", headers=auth)

    return post


@pytest.mark.parametrize(
    ("sent", "status", "code"),
    [
        (b"", 400, "invalid_json"),
        (b"{", 400, "invalid_json"),
        (b"[]", 400, "invalid_json"),
        (b"\xff\xfe", 400, "invalid_json"),
        (b'{"amount": 1, "amount": 2}', 400, "invalid_json"),
        (b'{"amount": NaN}', 400, "invalid_json"),
        (b"[" * 60000, 400, "invalid_json"),
        (b'{"a":' * 10 + b"1" + b"}" * 10, 400, "invalid_json"),
        (b'{"amount": ' + b"9" * 5000 + b"}", 400, "invalid_json"),
        (b" " * (64 * 1024 + 1), 413, "body_too_large"),
        (body(amount=25.99), 422, "validation_failed"),
        (body(amount="2599"), 422, "validation_failed"),
        (body(amount=True), 422, "validation_failed"),
        (body(amount=0), 422, "validation_failed"),
        (body(amount=-1), 422, "validation_failed"),
        (body(amount=10**12), 422, "validation_failed"),
        (body(reference="7" * 60_000), 422, "validation_failed"),
        (body(reference="4 " * 30_000), 422, "validation_failed"),
        (body(currency="USD"), 422, "validation_failed"),
        (body(currency="xau"), 422, "validation_failed"),
        (body(currency=None), 422, "validation_failed"),
        (body(payment_method=""), 422, "validation_failed"),
        (body(colour="red"), 422, "validation_failed"),
        (body(metadata={"a": 1}), 422, "validation_failed"),
        (body(metadata={"a": {"b": "c"}}), 422, "validation_failed"),
        (body(metadata={str(n): "" for n in range(51)}), 422, "validation_failed"),
        (body(reference="a\x00b"), 422, "validation_failed"),
        (body(reference="\ud800"), 422, "validation_failed"),
        (body(reference="line\nforged"), 422, "validation_failed"),
        (body(capture_method="later"), 422, "validation_failed"),
        (body(expires_at="2030-01-01"), 422, "validation_failed"),
        (body(expires_at=1900000000), 422, "validation_failed"),
        (body(expires_at="0001-01-01T00:00:00+23:59"), 422, "validation_failed"),
    ],
)
def test_bad_input_gets_its_problem_and_leaves_no_trace(
    post: Ask,
    provider: BookedProvider,
    count: Callable[[str], int],
    sent: bytes,
    status: int,
    code: str,
) -> None:
    answer = post(sent)

    problem = Problem.model_validate(answer.json)
    assert (answer.status_code, problem.code, problem.retry_safe) == (status, code, False)
    assert answer.content_type == "application/problem+json"
    assert count("payments") == count("idempotency_keys") == 0
    assert provider.calls == []


@pytest.mark.parametrize(
    ("sent", "headers"),
    [
        (body(payment_method=CARD), {}),
        (body(reference=f"card {CARD} 12/30"), {}),
        (body(reference="4242 4242 4242 4242"), {}),
        (body(customer="5555-5555-5555-4444"), {}),
        (body(metadata={"pan": CARD}), {}),
        (body(metadata={CARD: "x"}), {}),
        (body(**{CARD: "x"}), {}),
        (body(amount=int(CARD)), {}),
        (body(note={"deep": [{"er": CARD}]}), {}),
        (body(metadata={CARD[:8]: CARD[8:]}), {}),
        (body(metadata={CARD[:10]: int(CARD[10:])}), {}),
        (body(note=["4242", "4242", "4242", "4242"]), {}),
        (body(reference="4242\u200b4242 \u2013 4242,,4242"), {}),
        (body(reference=f"{CARD}deadbeef"), {}),
        (body().replace(b"pm_card_visa", b"\\u0034" + CARD[1:].encode()), {}),
        (body(), {"Idempotency_Key": CARD}),
    ],
)
def test_a_card_number_anywhere_is_refused_and_never_seen_again(
    post: Ask,
    count: Callable[[str], int],
    caplog: pytest.LogCaptureFixture,
    sent: bytes,
    headers: dict[str, str],
) -> None:
    with caplog.at_level(logging.DEBUG):
        answer = post(sent, **headers)

    assert (answer.status_code, answer.json["code"]) == (422, "card_data_refused")
    assert count("payments") == 0
    seen = answer.get_data(as_text=True) + caplog.text + str([r.__dict__ for r in caplog.records])
    assert CARD[4:] not in seen
    assert "4242 4242" not in seen


@pytest.mark.parametrize("sent", [body(**{"x7f3 secret": 1}), body(payment_method="s3cret value")])
def test_a_refused_value_or_strange_name_is_not_shown(post: Ask, sent: bytes) -> None:
    answer = post(sent)

    assert answer.status_code == 422
    assert "cret" not in answer.get_data(as_text=True)


@pytest.mark.parametrize("key", [None, "", "a b", "ä", "x" * 256, '"unclosed', '""'])
def test_a_payment_needs_a_sound_idempotency_key(
    client: FlaskClient, api_key: str, key: str | None
) -> None:
    headers = {"Authorization": f"Bearer {api_key}"}
    if key is not None:
        headers["Idempotency-Key"] = key

    answer = client.post("/v1/payments", json=PAYMENT, headers=headers)

    assert (answer.status_code, answer.json["code"]) == (400, "idempotency_key_missing")


@pytest.mark.parametrize("given", ["", "0", "000", "-1", "1.5", "1e3", "٣", "1 2", "9" * 10])
def test_a_time_limit_is_whole_milliseconds_from_one_on(
    client: FlaskClient, api_key: str, given: str
) -> None:
    headers = {"Authorization": f"Bearer {api_key}", "X-Request-Timeout-Ms": given}

    answer = client.get("/v1/payments", headers=headers)

    assert (answer.status_code, answer.json["code"]) == (422, "validation_failed")


@pytest.mark.parametrize(
    "query", ["reference=%00", "reference=a%0ab", "cursor=%00", "%00=1", "limit=1&limit=2"]
)
def test_what_cannot_be_stored_cannot_be_asked_for_either(
    client: FlaskClient, api_key: str, query: str
) -> None:
    answer = client.get(f"/v1/payments?{query}", headers={"Authorization": f"Bearer {api_key}"})

    assert (answer.status_code, answer.json["code"]) == (422, "validation_failed")


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nowhere", 404, "not_found"),
        ("GET", "//v1/payments", 404, "not_found"),
        ("GET", "/v1/payments/", 404, "not_found"),
        ("GET", f"/v1/payments/{CARD}", 404, "not_found"),
        ("GET", "/v1/payments/pay_" + "0" * 32, 404, "not_found"),
        ("GET", f"/v1/payments/pay_{'0' * 32}/timeline", 404, "not_found"),
        ("DELETE", "/v1/payments", 405, "method_not_allowed"),
        ("BREW", "/v1/payments", 405, "method_not_allowed"),
    ],
)
def test_what_is_not_there_is_a_problem_too(
    client: FlaskClient, api_key: str, method: str, path: str, status: int, code: str
) -> None:
    answer = client.open(path, method=method, headers={"Authorization": f"Bearer {api_key}"})

    assert answer.status_code == status
    assert Problem.model_validate(answer.json).code == code
    assert CARD not in answer.get_data(as_text=True)


@pytest.mark.parametrize("method", ["POST", "GET"])
def test_a_request_that_waited_its_whole_time_is_not_begun(
    client: FlaskClient, api_key: str, provider: BookedProvider, method: str
) -> None:
    answer = client.open(
        "/v1/payments",
        method=method,
        json=PAYMENT if method == "POST" else None,
        headers={"Authorization": f"Bearer {api_key}", "Idempotency-Key": "k"},
        environ_overrides={ARRIVED_S: monotonic() - 9.0},
    )

    assert (answer.status_code, answer.json["code"]) == (503, "deadline_exceeded")
    assert provider.calls == []


def test_without_a_database_the_provider_is_not_called(
    settings: Settings, api_key: str, provider: BookedProvider
) -> None:
    nowhere = Settings(
        database_url="postgresql://127.0.0.1:1/none", home=settings.home, metrics_dir=settings.home
    )
    client = create_app(nowhere, provider=provider).test_client()
    headers = {"Authorization": f"Bearer {api_key}", "Idempotency-Key": "k"}
    began_s = monotonic()

    answer = client.post("/v1/payments", json=PAYMENT, headers=headers)
    ready = client.get("/readyz")

    assert (answer.status_code, answer.json["code"]) == (503, "database_unavailable")
    assert (answer.json["retry_safe"], answer.json["stage"]) == (True, "not_sent")
    assert "Retry-After" in answer.headers
    assert (ready.status_code, client.get("/healthz").status_code) == (503, 200)
    assert provider.calls == []
    # Each was refused at once: two of them at the end of their eight seconds would be later.
    assert monotonic() - began_s < 15.0


def test_a_bug_is_a_problem_that_shows_nothing(caplog: pytest.LogCaptureFixture) -> None:
    app = Flask("with a bug")
    request_scope.install(app, request_timeout_s=8)
    register_problems(app)

    def fail() -> None:
        raise RuntimeError("secret words")

    app.add_url_rule("/bug", view_func=fail, methods=["POST"])

    answer = app.test_client().post("/bug")

    problem = Problem.model_validate(answer.json)
    assert (answer.status_code, problem.code) == (500, "internal_error")
    assert problem.title == "Internal error"
    assert (problem.retry_safe, problem.stage) == (True, "sent_unknown")
    assert "secret words" not in answer.get_data(as_text=True)
    assert "secret words" in caplog.text


@pytest.mark.parametrize(
    ("given", "is_kept"),
    [
        ("checkout-77f3", True),
        ("550e8400-e29b-41d4-a716-446655440000", True),
        ("x" * 65, False),
        ("a b c d e f g", False),
        (CARD, False),
    ],
)
def test_the_callers_request_id_is_kept_where_it_is_safe(
    client: FlaskClient, given: str, is_kept: bool
) -> None:
    answer = client.get("/nowhere", headers={"X-Request-Id": given})

    assert (answer.headers["X-Request-Id"] == given) is is_kept
    assert answer.json["request_id"] == answer.headers["X-Request-Id"]


def test_made_up_paths_and_methods_make_no_new_metrics(client: FlaskClient) -> None:
    for number in range(20):
        client.open(f"/made-up/{number}", method=f"VERB{number}")

    counted = [
        sample.labels
        for family in REGISTRY.collect()
        if family.name == "holdfast_http_requests"
        for sample in family.samples
        if sample.name.endswith("_total")
    ]
    assert {"route": "unmatched", "method": "OTHER", "status": "404"} in counted
    assert not any("made-up" in labels["route"] for labels in counted)
    assert not any("VERB" in labels["method"] for labels in counted)


@pytest.mark.parametrize("path", ["/v1/payments", "/healthz", "/nowhere", "/openapi.json", "/docs"])
def test_every_answer_forbids_framing_sniffing_and_storing(client: FlaskClient, path: str) -> None:
    headers = client.get(path).headers

    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Cache-Control"] == "no-store"
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
