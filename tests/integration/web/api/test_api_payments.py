"""POST and GET /v1/payments: the answers to callers, and the effect of the same key."""

from __future__ import annotations

import threading
from collections.abc import Callable
from time import monotonic
from uuid import UUID

import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from service.web.api.schemas import (
    PaymentDocument,
    PaymentPage,
)
from service.web.api.timeline_schemas import Timeline
from service.web.http.problem_schemas import (
    Problem,
)
from service.web.http.request_scope import ARRIVED_S
from tests.integration.web.api.conftest import PAYMENT, Connection
from tests.support.providers.booked_provider import BookedProvider, declined, unknown

Ask = Callable[..., TestResponse]


def test_a_payment_is_created_and_read_back(pay: Ask, get: Ask) -> None:
    created = pay(reference="order 123", metadata={"cart": "77"})
    read = get(created.headers["Location"])

    assert created.status_code == 201
    assert PaymentDocument.model_validate(created.json).status == "succeeded"
    assert created.json["reference"] == "order 123"
    assert created.json["metadata"] == {"cart": "77"}
    assert read.json == created.json
    assert [attempt["op"] for attempt in read.json["attempts"]] == ["prepare", "confirm"]


def test_an_unchanged_payment_is_not_sent_again(pay: Ask, get: Ask) -> None:
    path = pay().headers["Location"]
    etag = get(path).headers["ETag"]

    again = get(path, If_None_Match=etag)

    assert (again.status_code, again.data) == (304, b"")


@pytest.mark.parametrize("again", ["order-1", '"order-1"'])
def test_the_same_key_again_answers_with_the_same_payment(
    pay: Ask, provider: BookedProvider, again: str
) -> None:
    first = pay("order-1", capture_method="automatic")

    second = pay(again)

    assert second.status_code == first.status_code == 201
    assert second.json["id"] == first.json["id"]
    assert second.headers["Idempotent-Replayed"] == "true"
    assert "Idempotent-Replayed" not in first.headers
    assert provider.calls == ["prepare", "confirm"]


def test_the_same_key_with_another_body_is_refused(pay: Ask) -> None:
    pay()

    other = pay(amount=2600)

    assert (other.status_code, other.json["code"]) == (422, "idempotency_key_reused")
    assert other.json["retry_safe"] is False


def test_second_call_gets_the_location_of_the_first(
    app: Flask, pay: Ask, api_key: str, provider: BookedProvider
) -> None:
    seconds: list[TestResponse] = []

    def ask_again() -> None:
        client = app.test_client()
        headers = {"Authorization": f"Bearer {api_key}", "Idempotency-Key": "order-1"}
        seconds.append(client.post("/v1/payments", json=PAYMENT, headers=headers))

    provider.during_call = lambda: in_thread(ask_again)
    first = pay()

    assert first.status_code == 201
    assert [second.status_code for second in seconds] == [409, 409]
    assert seconds[0].json["code"] == "idempotency_key_in_flight"
    assert seconds[0].json["retry_safe"] is True
    assert seconds[0].headers["Location"] == first.headers["Location"]
    assert int(seconds[0].headers["Retry-After"]) >= 1


@pytest.mark.parametrize("confirms", [(declined(),)])
def test_a_decline_is_final_and_says_why(pay: Ask, get: Ask) -> None:
    refused, replayed = pay(), pay()

    for answer in (refused, replayed):
        assert answer.status_code == 402
        problem = Problem.model_validate(answer.json)
        assert (problem.code, problem.retry_safe) == ("card_declined", False)
        assert answer.content_type == "application/problem+json"
    assert replayed.headers["Idempotent-Replayed"] == "true"
    assert get(refused.headers["Location"]).json["status"] == "declined"


@pytest.mark.parametrize("confirms", [(unknown(),)])
def test_doubt_is_accepted_and_never_called_failed(pay: Ask, get: Ask) -> None:
    answer = pay()

    assert answer.status_code == 202
    assert (answer.json["status"], answer.json["outcome"]) == ("unknown", "unknown")
    assert int(answer.headers["Retry-After"]) >= 1
    assert get(answer.headers["Location"]).json["next_check_at"] is not None


def test_who_prefers_so_is_answered_before_the_provider_is_asked(
    pay: Ask, get: Ask, provider: BookedProvider
) -> None:
    answer = pay(headers={"Prefer": "respond-async"})

    assert (answer.status_code, answer.json["status"]) == (202, "queued")
    assert provider.calls == []
    waited = get(answer.headers["Location"], Prefer="wait=1", X_Request_Timeout_Ms="900")
    assert waited.headers["Preference-Applied"] == "wait"
    assert waited.json["status"] == "queued"


def test_time_in_the_queue_counts_for_the_deadline(
    pay: Ask, client: FlaskClient, provider: BookedProvider, count: Callable[[str], int]
) -> None:
    client.environ_base[ARRIVED_S] = monotonic() - 0.5
    answer = pay(headers={"X-Request-Timeout-Ms": "400"})

    assert (answer.status_code, answer.json["code"]) == (503, "deadline_exceeded")
    assert answer.json["retry_safe"] is True
    assert "Retry-After" in answer.headers
    assert provider.calls == []
    assert count("payments") == count("idempotency_keys") == 0


def test_every_payment_is_on_exactly_one_page(pay: Ask, get: Ask) -> None:
    made = [pay(f"key-{number}", reference=f"r{number % 2}").json["id"] for number in range(5)]

    listed, path = [], "/v1/payments?limit=2"
    while path:
        page = PaymentPage.model_validate(get(path).json)
        listed += [payment.id for payment in page.data]
        path = f"/v1/payments?limit=2&cursor={page.next_cursor}" if page.has_more else ""

    assert listed == made[::-1]


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("reference=r1", 2),
        ("status=succeeded", 5),
        ("status=queued", 0),
        ("created_gte=2020-01-01T00:00:00Z", 5),
        ("created_gte=2120-01-01T00:00:00+01:00", 0),
    ],
)
def test_a_list_holds_only_what_was_asked_for(pay: Ask, get: Ask, query: str, found: int) -> None:
    for number in range(5):
        pay(f"key-{number}", reference=f"r{number % 2}")

    assert len(get(f"/v1/payments?{query}").json["data"]) == found


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=101", "limit=x", "status=paid", "cursor=x", "colour=red",
              "created_gte=2020-01-01", "limit=1&limit=2", "cursor=1-" + "g" * 32]
)  # fmt: skip
def test_a_wrong_query_is_refused(get: Ask, query: str) -> None:
    answer = get(f"/v1/payments?{query}")

    assert (answer.status_code, answer.json["code"]) == (422, "validation_failed")


def test_timeline_without_kept_events_is_empty_not_missing(
    pay: Ask, get: Ask, owner: Connection, merchant_id: UUID
) -> None:
    timeline = pay().json["links"]["timeline"]
    with owner.cursor() as cursor:
        # As a detached month leaves it.
        cursor.execute("DELETE FROM events WHERE merchant_id = %s", (str(merchant_id),))

    answer = get(timeline)

    assert (answer.status_code, answer.json) == (200, {"data": []})


def test_the_timeline_tells_each_step_in_order(
    pay: Ask, get: Ask, provider: BookedProvider
) -> None:
    links = pay().json["links"]

    steps = Timeline.model_validate(get(links["timeline"]).json).data

    assert [step.type for step in steps] == [
        "payment.accepted",
        "payment.sending",
        "payment.succeeded",
    ]
    assert all(step.detail.pool_wait_ms >= 0 for step in steps)
    last = steps[-1].detail
    assert (last.op, last.attempt, last.stage, last.outcome) == (
        *("confirm", 2, "answered", "succeeded"),
    )
    assert last.breaker == "closed"
    assert last.ms is not None


def in_thread(work: Callable[[], None]) -> None:
    """Run to the end in another thread, as another request of the same worker would."""
    thread = threading.Thread(target=work)
    thread.start()
    thread.join(60)
