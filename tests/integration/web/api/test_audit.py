"""The audit log: each privileged act with its author, in the transaction of the act."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import UUID, uuid4

import psycopg2.errors
import pytest
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from service.database.pool.pool import ConnectionPool
from service.payments.audit import Actor, AuditLog, Entry
from service.payments.merchants import (
    DEFAULT_MERCHANT_ID,
    SCOPES,
    KeyStore,
    bootstrap,
    generate_key,
)
from service.providers.base import Outcome, OutcomeKind, Stage
from service.resilience.deadline import Deadline
from tests.integration.web.api.conftest import Connection, connect

Ask = Callable[..., TestResponse]
ADDRESS = {"REMOTE_ADDR": "192.0.2.7"}
UNKNOWN = Outcome(OutcomeKind.UNKNOWN, Stage.SENT_UNKNOWN, error="timeout")


@pytest.fixture
def ask(client: FlaskClient, api_key: str) -> Ask:
    def ask(method: str, path: str, body: Any = None) -> TestResponse:
        headers = {"Authorization": f"Bearer {api_key}", "X-Request-Id": "req-of-the-test"}
        return client.open(path, method=method, json=body, headers=headers, environ_base=ADDRESS)

    return ask


@pytest.fixture
def acts(owner: Connection, merchant_id: UUID) -> Callable[[], list[tuple[Any, ...]]]:
    """(action, target, detail) of the merchant, oldest first; the author is the same for all."""

    def acts() -> list[tuple[Any, ...]]:
        with owner.cursor() as cursor:
            cursor.execute(
                "SELECT action, target, detail, actor_kind, address, request_id FROM audit_log"
                " WHERE merchant_id = %s ORDER BY audit_id",
                (str(merchant_id),),
            )
            rows = cursor.fetchall()
        assert {row[3:] for row in rows} <= {("api_key", "192.0.2.7", "req-of-the-test")}
        return [row[:3] for row in rows]

    return acts


def test_keys_that_are_made_and_revoked_are_audited(ask: Ask, acts: Callable[..., Any]) -> None:
    made = ask("POST", "/v1/api_keys", {"scopes": ["read"], "label": "till 4"}).json
    assert ask("DELETE", f"/v1/api_keys/{made['id']}").status_code == 204
    assert ask("DELETE", f"/v1/api_keys/{made['id']}").status_code == 404

    created, revoked = acts()

    assert created[:2] == ("api_key.created", made["id"])
    assert (created[2]["scopes"], created[2]["label"]) == (["read"], "till 4")
    assert revoked == ("api_key.revoked", made["id"], {"label": "till 4"})
    assert made["key"] not in str([created, revoked])


def test_changes_of_webhook_endpoints_are_audited(ask: Ask, acts: Callable[..., Any]) -> None:
    path = "/v1/webhook_endpoints"
    made = ask("POST", path, {"url": "https://shop.example/a?token=hush"}).json
    one = f"{path}/{made['id']}"
    changed = ask("PATCH", one, {"url": "https://shop.example/b", "status": "paused"})
    rotated = ask("POST", f"{one}/rotate_secret").json
    assert (changed.status_code, ask("DELETE", one).status_code) == (200, 204)
    assert ask("DELETE", one).status_code == 404

    found = acts()

    kinds = ["created", "changed", "secret_rotated", "deleted"]
    assert [act[0] for act in found] == [f"webhook_endpoint.{kind}" for kind in kinds]
    assert {act[1] for act in found} == {made["id"]}
    assert found[1][2] == {
        "url": {"from": "https://shop.example/a?...", "to": "https://shop.example/b"},
        "status": {"from": "enabled", "to": "paused"},
    }
    assert not any(secret in str(found) for secret in ("hush", made["secret"], rotated["secret"]))


@pytest.mark.parametrize("confirms", [(UNKNOWN,)])
def test_reconcile_and_resolve_are_audited(
    ask: Ask, pay: Ask, acts: Callable[..., Any], confirms: tuple[Outcome, ...]
) -> None:
    payment = pay().json["id"]
    assert ask("POST", f"/v1/payments/{payment}/reconcile").status_code == 202
    evidence = "bank statement of 3 March"
    body = {"outcome": "declined", "evidence": evidence}
    assert ask("POST", f"/v1/payments/{payment}/resolve", body).status_code == 200
    assert ask("POST", f"/v1/payments/{payment}/resolve", body).status_code == 409

    asked, resolved = acts()

    assert asked[:2] == ("payment.reconcile_requested", payment)
    assert resolved[:2] == ("payment.resolved", payment)
    assert (resolved[2]["to"], resolved[2]["evidence"]) == ("declined", evidence)


def test_an_act_that_cannot_be_audited_does_not_happen(
    ask: Ask, owner: Connection, count: Callable[[str], int], merchant_id: UUID
) -> None:
    before = count("api_keys")
    with owner.cursor() as cursor:
        cursor.execute("REVOKE INSERT ON audit_log FROM holdfast")
        try:
            refused = [
                ask("POST", "/v1/api_keys", {"scopes": ["read"]}),
                ask("POST", "/v1/webhook_endpoints", {"url": "https://shop.example/a"}),
            ]
        finally:
            cursor.execute("GRANT INSERT ON audit_log TO holdfast")

    assert [answer.status_code for answer in refused] == [500, 500]
    assert (count("api_keys"), count("webhook_endpoints")) == (before, 0)


@pytest.mark.parametrize("statement", ["UPDATE audit_log SET actor = 'x'", "DELETE FROM audit_log"])
def test_the_serving_role_can_only_add_to_the_audit_log(database_url: str, statement: str) -> None:
    connection = connect(database_url)
    with connection.cursor() as cursor, pytest.raises(psycopg2.errors.InsufficientPrivilege):
        cursor.execute(statement)
    connection.close()


def test_the_log_is_filtered_bounded_and_read_in_pages(pool: ConnectionPool) -> None:
    log, soon = AuditLog(pool), Deadline.after(60)
    merchant = uuid4()
    for number in range(5):
        actor = Actor("cli", f"user{number % 2}")
        log.write(actor, Entry("api_key.created", merchant, target=f"k{number}"), soon)
    log.write(Actor("cli", "nul\0 \ud800"), Entry("drill.refused", detail={"a": ["\0"]}), soon)

    page = log.read(soon, merchant_id=merchant, limit=3)
    rest = log.read(soon, merchant_id=merchant, before=page[-1].audit_id)

    assert [one.target for one in page + rest] == ["k4", "k3", "k2", "k1", "k0"]
    assert [one.target for one in log.read(soon, actor="user1")] == ["k3", "k1"]
    assert [one.target for one in log.read(soon, target="k2", action="api_key")] == ["k2"]
    assert log.read(soon, action="api") == []
    assert log.read(soon, since=page[0].at, merchant_id=merchant)[0].target == "k4"
    assert log.read(soon, until=page[0].at, since=page[-1].at, merchant_id=merchant)
    assert log.read(soon, action="drill.refused")[0].detail == {"a": ["\N{REPLACEMENT CHARACTER}"]}


def test_drill_acts_of_older_versions_are_still_read(pool: ConnectionPool, owner_url: str) -> None:
    owner, run = connect(owner_url), uuid4()
    with owner.cursor() as cursor:
        cursor.execute(
            "INSERT INTO rehearsal_audit (audit_id, action, requested_by, rehearsal_id)"
            " VALUES (%s, 'started', 'key', %s)",
            (str(uuid4()), str(run)),
        )
    owner.close()

    (found,) = AuditLog(pool).read(Deadline.after(60), action="drill")

    assert (found.action, found.actor, found.target) == ("drill.started", "key", f"run_{run.hex}")


def test_an_older_bootstrap_key_keeps_the_whole_instance(
    owner_url: str, pool: ConnectionPool
) -> None:
    owner, first, second = connect(owner_url), generate_key("test"), generate_key("test")
    for api_key in (first, first, second):
        bootstrap(owner, api_key, "test")
    keys, soon = KeyStore(pool), Deadline.after(60)
    with owner.cursor() as cursor:
        cursor.execute("UPDATE api_keys SET platform = false")
        bootstrap(owner, second, "test")
    owner.close()

    held = {key.key_id: key.scopes for key in keys.of_merchant(DEFAULT_MERCHANT_ID, soon)}

    assert held[second.split("_")[2]] == {*SCOPES, "platform"}
    assert held[first.split("_")[2]] == {*SCOPES}
    made = [one.target for one in AuditLog(pool).read(soon, action="api_key.bootstrapped")]
    assert made == [key.split("_")[2] for key in (second, second, first)]
