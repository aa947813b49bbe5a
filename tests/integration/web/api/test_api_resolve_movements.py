"""An operator resolves one refund, capture or void in doubt, over REST and by command."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

import pytest
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from service.cli import payments as command_line
from service.payments.settling.invariants import check_invariants
from service.settings import Settings
from tests.support.providers.booked_provider import BookedProvider, unknown
from tests.support.stack.pools import open_pool_of
from tests.support.stack.settling import soon

Ask = Callable[..., TestResponse]
EVIDENCE = "the provider's page of 3 March"


@pytest.fixture
def post(client: FlaskClient, api_key: str) -> Ask:
    def post(path: str, **body: Any) -> TestResponse:
        headers = {"Authorization": f"Bearer {api_key}", "Idempotency-Key": str(uuid4())}
        return client.post(path, json=body, headers=headers)

    return post


@pytest.fixture(autouse=True)
def _as_booked(provider: BookedProvider) -> Iterator[None]:
    yield
    provider.next_answers.clear()


@pytest.fixture
def broken(settings: Settings) -> Iterator[Callable[[], set[str]]]:
    """The names of the rules about money that the module's database breaks."""
    with open_pool_of(1, str(settings.database_url)) as pool:
        yield lambda: {rule for rule, rows in check_invariants(pool, soon()).items() if rows}


@pytest.fixture
def resolve(post: Ask) -> Ask:
    def resolve(path: str, outcome: str, evidence: str = EVIDENCE) -> TestResponse:
        return post(f"{path}/resolve", outcome=outcome, evidence=evidence)

    return resolve


@pytest.fixture
def doubtful_refund(pay: Ask, post: Ask, provider: BookedProvider) -> tuple[str, str]:
    """(payment, refund) as paths; the refund of 1000 is in doubt."""
    paid = str(pay().headers["Location"])
    provider.next_answers["refund"] = [unknown()]
    refund = post(f"{paid}/refunds", amount=1000)
    assert refund.json["status"] == "unknown"
    return paid, str(refund.headers["Location"])


@pytest.fixture
def doubtful_end(pay: Ask, post: Ask, provider: BookedProvider) -> Callable[[str], str]:
    """The path of a payment whose capture or void is in doubt."""

    def make(kind: str) -> str:
        reserved = str(pay(capture_method="manual").headers["Location"])
        provider.next_answers["capture" if kind == "capture" else "cancel"] = [unknown()]
        body = {"amount": 1500} if kind == "capture" else {}
        assert post(f"{reserved}/{kind}", **body).status_code == 202
        return reserved

    return make


@pytest.mark.parametrize(
    ("outcome", "status", "refunded", "left"),
    [
        ("succeeded", "succeeded", 1000, 1599),
        ("declined", "declined", 0, 2599),
        ("not_executed", "declined", 0, 2599),
    ],
)
def test_doubtful_refund_is_resolved(
    get: Ask, post: Ask, resolve: Ask, broken, doubtful_refund, outcome, status, refunded, left
) -> None:
    payment, refund = doubtful_refund

    answer = resolve(refund, outcome)

    assert (answer.status_code, answer.json["status"]) == (200, status)
    assert get(refund).json == answer.json
    assert get(payment).json["amount_refunded"] == refunded
    assert post(f"{payment}/refunds", amount=left + 1).status_code == 422
    assert post(f"{payment}/refunds", amount=left).status_code == 201
    step = get(f"{payment}/timeline").json["data"]
    (found,) = [one for one in step if one["detail"].get("reason") == EVIDENCE]
    assert found["type"] == f"refund.{status}"
    assert broken() == set()


@pytest.mark.parametrize(
    ("kind", "outcome", "status", "captured"),
    [
        ("capture", "succeeded", "succeeded", 1500),
        ("capture", "not_executed", "requires_capture", 0),
        ("void", "succeeded", "canceled", 0),
        ("void", "declined", "requires_capture", 0),
    ],
)
def test_doubtful_capture_or_void_is_resolved(
    get: Ask, resolve: Ask, broken, doubtful_end, kind, outcome, status, captured
) -> None:
    payment = doubtful_end(kind)

    answer = resolve(f"{payment}/{kind}", outcome)

    assert (answer.status_code, answer.json["status"]) == (200, status)
    assert get(payment).json["amount_captured"] == captured
    assert broken() == set()


def test_declined_finding_leaves_room_for_the_next_capture(
    post: Ask, resolve: Ask, doubtful_end
) -> None:
    payment = doubtful_end("capture")
    resolve(f"{payment}/capture", "not_executed")

    captured = post(f"{payment}/capture", amount=2599)

    assert (captured.status_code, captured.json["amount_captured"]) == (200, 2599)


@pytest.mark.parametrize("held", ["movements", "payments"])
def test_resolve_waits_while_a_call_is_under_way(
    get: Ask, resolve: Ask, owner, doubtful_refund, held: str
) -> None:
    payment, refund = doubtful_refund
    with owner.cursor() as cursor:
        cursor.execute(
            f"UPDATE {held} SET leased = true, due_at = now() + interval '10 minutes'"  # noqa: S608
            " WHERE payment_id = %s::uuid",
            (payment.rpartition("_")[2],),
        )

        answer = resolve(refund, "declined")

    assert (answer.status_code, answer.json["code"]) == (409, "wrong_state")
    assert "in progress" in answer.json["detail"]
    assert get(refund).json["status"] == "unknown"
    assert get(payment).json["amount_refunded"] == 0


def test_only_what_is_in_doubt_can_be_resolved(
    pay: Ask, post: Ask, resolve: Ask, doubtful_refund
) -> None:
    paid, refund = doubtful_refund
    resolve(refund, "succeeded")
    ended = post(f"{paid}/refunds", amount=1).headers["Location"]
    captured = str(pay("order-2", capture_method="manual").headers["Location"])
    post(f"{captured}/capture")

    refused = [
        resolve(refund, "declined"),
        resolve(ended, "declined"),
        resolve(f"{captured}/capture", "declined"),
    ]

    assert [one.status_code for one in refused] == [409] * 3
    assert "in doubt" in refused[0].json["detail"]


def test_what_is_not_there_is_404_and_evidence_is_needed(
    pay: Ask, resolve: Ask, doubtful_refund
) -> None:
    paid, refund = doubtful_refund
    void_id = f"/v1/refunds/ref_{uuid4().hex}"

    answers = [
        resolve(void_id, "declined"),
        resolve("/v1/refunds/ref_x", "declined"),
        resolve(f"{paid}/capture", "declined"),
        resolve(refund, "declined", "short"),
        resolve(refund, "pending"),
    ]

    assert [one.status_code for one in answers] == [404, 404, 404, 422, 422]


def test_resolve_of_a_refund_needs_the_operator_scope(
    client: FlaskClient, make_key, merchant_id, doubtful_refund
) -> None:
    _, refund = doubtful_refund

    answer = client.post(
        f"{refund}/resolve",
        json={"outcome": "declined", "evidence": EVIDENCE},
        headers={"Authorization": f"Bearer {make_key(merchant_id, scopes=('refunds', 'read'))}"},
    )

    assert (answer.status_code, answer.json["code"]) == (403, "forbidden")


def test_resolve_of_a_refund_is_audited(resolve: Ask, owner, doubtful_refund) -> None:
    _, refund = doubtful_refund
    resolve(refund, "not_executed")

    with owner.cursor() as cursor:
        cursor.execute(
            "SELECT action, target, detail FROM audit_log WHERE target = %s",
            (refund.rpartition("/")[2],),
        )
        ((action, target, detail),) = cursor.fetchall()

    assert (action, target) == ("refund.resolved", refund.rpartition("/")[2])
    detail = detail if isinstance(detail, dict) else json.loads(detail)
    assert (detail["outcome"], detail["evidence"]) == ("not_executed", EVIDENCE)


@pytest.fixture
def command(settings: Settings, merchant_id, monkeypatch, capsys) -> Callable[..., Any]:
    """`payments resolve .. --json` as this merchant; its document, or the refusal."""
    monkeypatch.setenv("DATABASE_URL", str(settings.database_url))
    monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR", raising=False)
    parser = argparse.ArgumentParser()
    command_line.add_arguments(parser)

    def command(*words: str, evidence: str = EVIDENCE) -> Any:
        common = ("--evidence", evidence, "--merchant", str(merchant_id), "--json")
        try:
            command_line.run(parser.parse_args(["resolve", *words, *common]))
        except SystemExit as refusal:
            return refusal.code
        return json.loads(capsys.readouterr().out)

    return command


def test_command_resolves_a_refund(command, get: Ask, doubtful_refund) -> None:
    _, refund = doubtful_refund
    refund_id = refund.rpartition("/")[2]

    short = command(refund_id, "--outcome", "declined", evidence="short")
    resolved = command(refund_id, "--outcome", "succeeded")
    again = command(refund_id, "--outcome", "declined")

    assert "10 characters" in short
    assert (resolved["id"], resolved["status"]) == (refund_id, "succeeded")
    assert get(refund).json["status"] == "succeeded"
    assert "in doubt" in again


def test_command_resolves_a_capture(command, get: Ask, doubtful_end) -> None:
    payment = doubtful_end("capture")
    payment_id = payment.rpartition("/")[2]

    missing = command(payment_id, "--of", "void", "--outcome", "declined")
    resolved = command(payment_id, "--of", "capture", "--outcome", "succeeded")

    assert missing == "There is no such void of that payment of this merchant."
    assert (resolved["status"], resolved["payment"]) == ("succeeded", payment_id)
    assert get(payment).json["amount_captured"] == 1500
