"""The promise of an answer, over REST: a promise in doubt, and acts on calls under way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from service.app.data_plane import (
    create_app,
)
from service.settings import Settings
from tests.support.processes.database_link import DatabaseLink
from tests.support.providers.booked_provider import BookedProvider
from tests.support.providers.fakes import TIMED_OUT

BODY = {"amount": 2599, "currency": "usd", "payment_method": "pm_card_visa"}
RESOLUTION = {"outcome": "not_executed", "evidence": "the provider's own page, 3 March"}


@pytest.fixture
def link(settings: Settings) -> Iterator[DatabaseLink]:
    link = DatabaseLink(str(settings.database_url))
    yield link
    link.close()


@pytest.mark.parametrize("confirms", [(TIMED_OUT,)])
def test_resolve_and_reconcile_wait_for_a_call_under_way(
    client: FlaskClient, pay: Callable[..., TestResponse], api_key: str, owner: Any
):
    payment = pay(str(uuid4())).json["id"]
    headers = {"Authorization": f"Bearer {api_key}"}

    def act(name: str, body: dict[str, str] | None = None) -> TestResponse:
        return client.post(f"/v1/payments/{payment}/{name}", json=body, headers=headers)

    def lease(is_leased: bool) -> None:
        with owner.cursor() as cursor:
            cursor.execute(
                "UPDATE payments SET leased = %s, due_at = now() + interval '1 minute'"
                " WHERE payment_id = %s",
                (is_leased, payment.removeprefix("pay_")),
            )

    lease(True)
    during = [act("resolve", RESOLUTION), act("reconcile")]
    lease(False)

    assert [(one.status_code, one.json["code"]) for one in during] == [(409, "wrong_state")] * 2
    assert act("reconcile").status_code == 202
    assert act("resolve", RESOLUTION).json["status"] == "not_executed"


def test_a_promise_whose_commit_is_in_doubt_is_told_as_such(
    settings: Settings, link: DatabaseLink, api_key: str, tmp_path: Path
):
    slow = Settings(
        database_url=link.url, home=tmp_path, metrics_dir=tmp_path, request_timeout_ms=1000
    )
    client = create_app(slow, provider=BookedProvider()).test_client()
    headers = {"Authorization": f"Bearer {api_key}", "Prefer": "respond-async"}

    def pay(key: str) -> TestResponse:
        return client.post("/v1/payments", json=BODY, headers={**headers, "Idempotency-Key": key})

    first = pay(str(uuid4()))
    link.stall()
    doubtful = pay("doubtful")
    link.restore()

    assert first.status_code == 202
    assert (doubtful.status_code, doubtful.json["code"]) == (503, "acceptance_unknown")
    assert (doubtful.json["retry_safe"], doubtful.json["stage"]) == (True, "sent_unknown")
    assert int(doubtful.headers["Retry-After"]) >= 1
