"""Refunds, captures, voids and events over REST: the answers, and the effect of a key."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

import pytest
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from service.web.api.movement_schemas import EventPage, RefundDocument, RefundPage
from service.web.api.schemas import (
    PaymentDocument,
)
from service.web.http.problem_schemas import (
    Problem,
)
from tests.support.providers.booked_provider import BookedProvider, declined, refused, unknown

Ask = Callable[..., TestResponse]


@pytest.fixture
def post(client: FlaskClient, api_key: str) -> Ask:
    def post(path: str, key: str | None = None, **body: Any) -> TestResponse:
        return client.post(
            path,
            json=body,
            headers={
                "Authorization": f"Bearer {api_key}",
                "Idempotency-Key": key or str(uuid4()),
            },
        )

    return post


@pytest.fixture(autouse=True)
def _as_booked(provider: BookedProvider) -> Iterator[None]:
    yield
    provider.next_answers.clear()


@pytest.fixture
def paid(pay: Ask) -> str:
    return str(pay().headers["Location"])


@pytest.fixture
def authorised(pay: Ask) -> str:
    return str(pay(capture_method="manual").headers["Location"])


def test_a_refund_is_made_and_read_back(post: Ask, get: Ask, paid: str) -> None:
    made = post(f"{paid}/refunds", amount=1000, reason="requested_by_customer")
    read = get(made.headers["Location"])

    assert made.status_code == 201
    assert RefundDocument.model_validate(made.json).status == "succeeded"
    assert read.json == made.json
    assert get(paid).json["amount_refunded"] == 1000


def test_every_refund_is_on_exactly_one_page(post: Ask, get: Ask, paid: str) -> None:
    made = [post(f"{paid}/refunds", amount=amount).json["id"] for amount in (1, 2, 3)]

    listed, path = [], f"{paid}/refunds?limit=2"
    while path:
        page = RefundPage.model_validate(get(path).json)
        listed += [refund.id for refund in page.data]
        path = f"{paid}/refunds?limit=2&cursor={page.next_cursor}" if page.has_more else ""

    assert listed == made[::-1]


def test_more_than_is_left_is_refused_by_its_field(post: Ask, paid: str) -> None:
    post(f"{paid}/refunds", amount=2000)

    answer = post(f"{paid}/refunds", amount=600)

    assert (answer.status_code, answer.json["code"]) == (422, "validation_failed")
    assert answer.json["fields"] == [
        {"field": "amount", "reason": "is more than what is left to refund (599)"}
    ]


def test_a_refused_refund_consumes_no_key(post: Ask, paid: str) -> None:
    assert post(f"{paid}/refunds", "k", amount=9999).status_code == 422
    assert post(f"{paid}/refunds", "k", amount=2599).status_code == 201


def test_the_same_key_again_is_answered_with_the_refund(post: Ask, paid: str) -> None:
    first = post(f"{paid}/refunds", "k", amount=2599)
    again = post(f"{paid}/refunds", "k", amount=2599)
    other = post(f"{paid}/refunds", "k", amount=1)

    assert (again.status_code, again.json) == (201, first.json)
    assert again.headers["Idempotent-Replayed"] == "true"
    assert (other.status_code, other.json["code"]) == (422, "idempotency_key_reused")


def test_the_same_key_for_another_payment_is_another_request(
    post: Ask, pay: Ask, paid: str
) -> None:
    other = pay("order-2").headers["Location"]
    post(f"{paid}/refunds", "k", amount=1)

    answer = post(f"{other}/refunds", "k", amount=1)

    assert (answer.status_code, answer.json["code"]) == (422, "idempotency_key_reused")


def test_doubt_is_accepted_and_says_when_to_ask(
    post: Ask, get: Ask, paid: str, provider: BookedProvider
) -> None:
    provider.next_answers["refund"] = [unknown()]

    answer = post(f"{paid}/refunds", amount=1)

    assert (answer.status_code, answer.json["outcome"]) == (202, "unknown")
    assert int(answer.headers["Retry-After"]) >= 1
    assert get(answer.headers["Location"]).json["next_check_at"] is not None


def test_a_refund_while_the_provider_is_away_is_queued(
    post: Ask, paid: str, provider: BookedProvider
) -> None:
    # The guard itself tries again at once, a few times.
    provider.next_answers["refund"] = [refused()] * 4

    answer = post(f"{paid}/refunds", amount=1)

    assert (answer.status_code, answer.json["status"]) == (202, "queued")


@pytest.mark.parametrize("what", ["refund", "capture"])
def test_the_providers_no_is_final_and_says_why(
    post: Ask, paid: str, pay: Ask, provider: BookedProvider, what: str
) -> None:
    provider.next_answers[what] = [declined()]
    if what == "refund":
        answer = post(f"{paid}/refunds", amount=1)
    else:
        authorised = pay("order-2", capture_method="manual").headers["Location"]
        answer = post(f"{authorised}/capture")

    problem = Problem.model_validate(answer.json)
    assert (answer.status_code, problem.code, problem.retry_safe) == (402, "card_declined", False)
    assert problem.decline is not None
    assert problem.decline.code == "insufficient_funds"


def test_a_part_is_captured_and_the_key_answers_with_the_payment(
    post: Ask, get: Ask, authorised: str
) -> None:
    captured = post(f"{authorised}/capture", "k", amount=2000)
    again = post(f"{authorised}/capture", "k", amount=2000)

    assert captured.status_code == 200
    payment = PaymentDocument.model_validate(captured.json)
    assert (payment.status, payment.amount_captured) == ("succeeded", 2000)
    assert (again.status_code, again.json) == (200, captured.json)
    assert again.headers["Idempotent-Replayed"] == "true"
    assert get(authorised).json == captured.json


def test_capture_after_a_void_is_in_the_wrong_state(post: Ask, authorised: str) -> None:
    voided = post(f"{authorised}/void")
    late = post(f"{authorised}/capture")

    assert (voided.status_code, voided.json["status"]) == (200, "canceled")
    assert (late.status_code, late.json["code"]) == (409, "wrong_state")


def test_a_capture_in_doubt_is_accepted(
    post: Ask, authorised: str, provider: BookedProvider
) -> None:
    provider.next_answers["capture"] = [unknown()]

    answer = post(f"{authorised}/capture")

    assert (answer.status_code, answer.json["status"]) == (202, "requires_capture")
    assert post(f"{authorised}/void").status_code == 409


@pytest.mark.parametrize(
    ("call", "body"),
    [
        ("refunds", {}),
        ("refunds", {"amount": 0}),
        ("refunds", {"amount": "1"}),
        ("refunds", {"amount": 1, "reason": ""}),
        ("capture", {"amount": -1}),
        ("capture", {"amount": 2600}),
        ("void", {"amount": 1}),
    ],
)
def test_a_wrong_body_is_refused(post: Ask, pay: Ask, call: str, body: dict[str, Any]) -> None:
    payment = pay(capture_method="automatic" if call == "refunds" else "manual")

    answer = post(f"{payment.headers['Location']}/{call}", **body)

    assert (answer.status_code, answer.json["code"]) == (422, "validation_failed")


@pytest.mark.parametrize("call", ["refunds", "capture", "void"])
def test_without_a_key_nothing_moves(
    client: FlaskClient, api_key: str, paid: str, call: str
) -> None:
    answer = client.post(
        f"{paid}/{call}", json={"amount": 1} if call == "refunds" else {},
        headers={"Authorization": f"Bearer {api_key}"},
    )  # fmt: skip

    assert (answer.status_code, answer.json["code"]) == (400, "idempotency_key_missing")


def test_another_merchants_objects_are_not_there(
    client: FlaskClient, make_key: Callable[..., str], post: Ask, paid: str
) -> None:
    refund = post(f"{paid}/refunds", amount=1).headers["Location"]
    headers = {"Authorization": f"Bearer {make_key(uuid4())}", "Idempotency-Key": "k"}

    answers = [
        client.get(refund, headers=headers),
        client.get(f"{paid}/refunds", headers=headers),
        client.post(f"{paid}/refunds", json={"amount": 1}, headers=headers),
        client.post(f"{paid}/capture", json={}, headers=headers),
        client.post(f"{paid}/void", headers=headers),
    ]

    assert [answer.status_code for answer in answers] == [404] * 5


@pytest.mark.parametrize(
    ("scope", "statuses"),
    [("payments", (403, 409, 403)), ("refunds", (201, 403, 403)), ("read", (403, 403, 200))],
)
def test_each_call_needs_its_scope(
    client: FlaskClient,
    make_key: Callable[..., str],
    merchant_id: Any,
    paid: str,
    scope: str,
    statuses: tuple[int, ...],
) -> None:
    key = make_key(merchant_id, scopes=(scope,))
    headers = {"Authorization": f"Bearer {key}", "Idempotency-Key": str(uuid4())}

    answers = (
        client.post(f"{paid}/refunds", json={"amount": 1}, headers=headers),
        client.post(f"{paid}/void", headers=headers),
        client.get("/v1/events", headers=headers),
    )

    assert tuple(answer.status_code for answer in answers) == statuses


def test_the_timeline_tells_of_the_refund(post: Ask, get: Ask, paid: str) -> None:
    post(f"{paid}/refunds", amount=1)

    steps = get(f"{paid}/timeline").json["data"]

    assert [step["type"] for step in steps][-2:] == ["refund.sending", "refund.succeeded"]
    assert steps[-1]["detail"]["stage"] == "answered"


def test_events_are_read_in_order_and_the_newest_may_repeat(post: Ask, get: Ask, paid: str) -> None:
    post(f"{paid}/refunds", amount=1)

    read, path, has_more = [], "/v1/events?limit=2", True
    while has_more:
        page = EventPage.model_validate(get(path).json)
        read += page.data
        path = f"/v1/events?limit=2&cursor={page.next_cursor}"
        has_more = page.has_more
    later = EventPage.model_validate(get(path).json)

    timeline = get(f"{paid}/timeline").json["data"]
    assert [event.id for event in read] == [step["id"] for step in timeline]
    assert {event.id for event in later.data} <= {event.id for event in read}


def test_who_has_read_all_and_comes_later_misses_nothing(post: Ask, get: Ask, paid: str) -> None:
    cursor = get("/v1/events").json["next_cursor"]

    refund = post(f"{paid}/refunds", amount=1).json

    types = [event["type"] for event in get(f"/v1/events?cursor={cursor}").json["data"]]
    assert refund["status"] == "succeeded"
    assert types[-2:] == ["refund.sending", "refund.succeeded"]


@pytest.mark.parametrize("query", ["cursor=x", "limit=0", "colour=red"])
def test_a_wrong_query_is_refused(get: Ask, query: str) -> None:
    assert get(f"/v1/events?{query}").status_code == 422


# --- In doubt: an operator's actions, and the answers to callers -----------------------------


def test_reconcile_looks_at_a_settled_payments_refunds(post: Ask, paid: str, provider) -> None:
    provider.next_answers["refund"] = [unknown()]
    refund = post(f"{paid}/refunds", amount=100)

    looked = post(f"{paid}/reconcile")

    assert (refund.status_code, looked.status_code) == (202, 202)


def test_reconcile_brings_back_what_waits_for_a_person(
    post: Ask, paid: str, provider, owner
) -> None:
    provider.next_answers["refund"] = [unknown()]
    movement_id = post(f"{paid}/refunds", amount=100).json["id"].removeprefix("ref_")
    with owner.cursor() as cursor:
        cursor.execute(
            "UPDATE movements SET status = 'needs_review', due_at = NULL"
            " WHERE movement_id = %s::uuid",
            (movement_id,),
        )

        assert post(f"{paid}/reconcile").status_code == 202

        cursor.execute(
            "SELECT due_at IS NOT NULL FROM movements WHERE movement_id = %s::uuid", (movement_id,)
        )
        assert cursor.fetchall() == [(True,)]


@pytest.mark.parametrize("act", ["reconcile", "resolve"])
def test_an_operator_waits_while_a_refund_is_under_way(
    post: Ask, paid: str, provider, owner, act: str
) -> None:
    said = {"outcome": "declined", "evidence": "the provider's page"} if act == "resolve" else {}
    provider.next_answers["refund"] = [unknown()]
    movement_id = post(f"{paid}/refunds", amount=100).json["id"].removeprefix("ref_")
    with owner.cursor() as cursor:
        cursor.execute(
            "UPDATE movements SET leased = true, due_at = now() + interval '10 seconds'"
            " WHERE movement_id = %s::uuid",
            (movement_id,),
        )

    answer = post(f"{paid}/{act}", **said)

    assert (answer.status_code, answer.json["code"]) == (409, "wrong_state")
    assert "in progress" in answer.json["detail"]


def test_there_is_nothing_to_find_out_about_an_ended_refund(post: Ask, paid: str) -> None:
    post(f"{paid}/refunds", amount=100)

    assert post(f"{paid}/reconcile").status_code == 409


def test_promise_that_cannot_be_written_is_no_202(post: Ask, paid: str, provider, owner) -> None:
    provider.next_answers["refund"] = [unknown()]
    with owner.cursor() as cursor:

        def hold_the_row() -> None:
            cursor.execute("BEGIN")
            cursor.execute("SELECT 1 FROM movements FOR UPDATE")

        provider.during_call = hold_the_row
        answer = post(f"{paid}/refunds", key="k", amount=100)
        cursor.execute("COMMIT")
    provider.during_call = lambda: None

    again = post(f"{paid}/refunds", key="k", amount=100)

    assert (answer.status_code, answer.json["code"]) == (503, "acceptance_unknown")
    assert (answer.json["stage"], answer.json["retry_safe"]) == ("sent_unknown", True)
    Problem.model_validate(answer.json)
    # The first call's lease still runs.
    assert again.status_code == 409
