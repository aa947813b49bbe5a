"""The secret that finishes 3-D Secure reaches only the payment's creator."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import psycopg2
import pytest

from tests.support.stack.running_stack import RunningStack, running_stack


@pytest.fixture(scope="module")
def local_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    with running_stack(tmp_path_factory.mktemp("home")) as local_stack:
        yield local_stack


def test_the_creator_alone_gets_the_client_secret(local_stack: RunningStack) -> None:
    key = str(uuid4())
    made = local_stack.pay(key, payment_method="pm_card_authenticationRequired", reference=key)
    payment = made.json()
    again = local_stack.pay(
        key, payment_method="pm_card_authenticationRequired", reference=key
    ).json()
    path = f"/v1/payments/{payment['id']}"
    others = [
        local_stack.get(where).text
        for where in (path, f"{path}/timeline", f"/v1/payments?reference={key}", "/v1/events")
    ]

    secret = payment["client_secret"]
    assert (made.status_code, payment["status"]) == (201, "requires_action")
    assert secret.startswith(f"{payment['provider_ref']}_secret_")
    assert secret in payment["next_action"]["redirect_to_url"]["url"]
    assert (again["client_secret"], again["next_action"]) == (secret, payment["next_action"])
    digits = secret.partition("_secret_")[2]
    stored = _all_rows(local_stack)
    assert payment["id"].removeprefix("pay_") in stored.replace("-", "")
    logged = [
        log.read_text(errors="replace") for log in Path(local_stack.home, "logs").glob("*.log")
    ]
    for text in (*others, stored, *logged):
        assert digits not in text
    # Readers see the type of the required action, but cannot do it for the payer.
    assert "client_secret=hidden" in others[0]


def test_the_answer_holds_no_secret_once_nothing_is_to_be_done(local_stack: RunningStack) -> None:
    key = str(uuid4())
    payment = local_stack.pay(key, payment_method="pm_card_authenticationRequired").json()
    decision = {"payment_intent": payment["provider_ref"], "success": True}
    local_stack.sandbox("POST", "/_complete_action", json=decision).raise_for_status()
    local_stack.settled(payment["id"])

    again = local_stack.pay(key, payment_method="pm_card_authenticationRequired").json()

    assert (again["status"], again["next_action"]) == ("succeeded", None)
    assert "client_secret" not in again


def _all_rows(local_stack: RunningStack) -> str:
    """Every row of the service's own tables, as text."""
    with psycopg2.connect(local_stack.database_url) as connection, connection.cursor() as cursor:
        cursor.execute(
            "SELECT relname FROM pg_class WHERE relkind IN ('r', 'p')"
            " AND relnamespace = 'public'::regnamespace AND has_table_privilege(oid, 'SELECT')"
        )
        tables = [name for (name,) in cursor.fetchall()]
        rows = []
        for table in tables:
            cursor.execute(f"SELECT t::text FROM {table} t")  # noqa: S608
            rows += [row for (row,) in cursor.fetchall()]
    return "\n".join(rows)
