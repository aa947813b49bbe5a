"""The commands for people on call, and webhooks out, beside a running Holdfast."""

from __future__ import annotations

import json
import os
import pwd
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from standardwebhooks import Webhook

from tests.integration.database.test_database_settings import SHELL
from tests.support.processes.webhook_receiver import webhook_receiver
from tests.support.stack.running_stack import ROOT, RunningStack, free_port, running_stack, wait_for


@pytest.fixture(scope="module")
def local_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    home = tmp_path_factory.mktemp("local_stack")
    with running_stack(home) as local_stack:
        yield local_stack


Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def command(local_stack: RunningStack) -> Command:
    """`python -m service ...` with only the run's home as its setting."""

    def command(*words: str, **environ: str) -> subprocess.CompletedProcess[str]:
        return run_command(*words, HOLDFAST_HOME=local_stack.home, **environ)

    return command


def run_command(*words: str, **environ: str) -> subprocess.CompletedProcess[str]:
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    return subprocess.run(
        [sys.executable, "-m", "service", *words],
        cwd=ROOT,
        env={**kept, **environ},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def if_done(done: subprocess.CompletedProcess[str]) -> subprocess.CompletedProcess[str] | None:
    return done if done.returncode == 0 else None


def parsed(done: subprocess.CompletedProcess[str]) -> Any:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_payment_is_found_and_its_life_is_told(
    local_stack: RunningStack, command: Command
) -> None:
    payment = local_stack.pay(reference="order-1").json()

    listed = command("payments", "list", "--reference", "order-1")
    shown = parsed(command("payments", "show", payment["id"], "--json"))

    assert listed.stdout.split()[7:10] == [payment["id"], "succeeded", "2599"]
    assert (shown["id"], shown["timeline"][-1]["type"]) == (payment["id"], "payment.succeeded")
    assert parsed(command("payments", "list", "--status", "needs_review", "--json")) == []


def test_what_cannot_be_done_is_said_in_a_sentence_with_status_1(
    local_stack: RunningStack, command: Command
) -> None:
    payment = local_stack.pay().json()["id"]
    resolve = ("--outcome", "declined", "--evidence", "seen in the books")

    refused = [
        command("payments", "resolve", payment, *resolve),
        command("payments", "reconcile", payment),
        command("payments", "show", "pay_x"),
        command("payments", "list", "--status", "lost"),
        command("keys", "make", "--scopes", "root"),
        command("keys", "revoke", "nobody"),
    ]

    assert [done.returncode for done in refused] == [1] * len(refused)
    assert all(done.stderr.count("\n") == 1 and not done.stdout for done in refused)


def test_the_acts_of_commands_are_in_the_audit_log(
    local_stack: RunningStack, command: Command
) -> None:
    made = parsed(command("keys", "make", "--scopes", "read", "--label", "till 9", "--json"))
    command("keys", "revoke", made["id"])

    acts = parsed(command("audit", "--target", made["id"], "--json"))
    listed = command("audit", "--action", "api_key", "--limit", "1").stdout.splitlines()

    assert [act["action"] for act in acts] == ["api_key.revoked", "api_key.created"]
    user = pwd.getpwuid(os.getuid()).pw_name
    assert {(act["actor_kind"], act["actor"]) for act in acts} == {("cli", user)}
    assert acts[1]["detail"]["label"] == "till 9"
    assert made["key"] not in json.dumps(acts)
    assert len(listed) == 2
    assert f"cli:{user}" in listed[1]


def test_resolved_doubt_has_its_operator_and_reason_in_timeline(
    local_stack: RunningStack, command: Command
) -> None:
    # Neither the charge nor the look-ups get an answer, so only a person can decide.
    local_stack.control({"hang_after_charge": 1.0}, operations=["confirm", "retrieve"])
    try:
        payment = local_stack.pay(headers={"X-Request-Timeout-Ms": "3000"}).json()
        assert payment["status"] == "unknown"
        found = ("--outcome", "succeeded", "--evidence", "pi_1 in the books")
        # The command is refused during a look-up, and each look-up hangs.
        resolve = ("payments", "resolve", payment["id"], *found, "--json")
        answer = wait_for(lambda: if_done(command(*resolve)), timeout_s=60)
        resolved = parsed(answer)
    finally:
        local_stack.control({"ok": 1.0})

    assert (resolved["status"], resolved["amount_captured"]) == ("succeeded", 2599)
    steps = parsed(command("payments", "show", payment["id"], "--json"))["timeline"]
    (step,) = [step for step in steps if step["type"] == "payment.succeeded"]
    assert step["detail"]["reason"] == "pi_1 in the books"
    assert step["detail"]["by"].startswith("cli:")


def test_a_key_made_here_opens_the_service_until_it_is_revoked(
    local_stack: RunningStack, command: Command
) -> None:
    made = parsed(command("keys", "make", "--scopes", "read", "--label", "till 4", "--json"))
    headers = {"Authorization": f"Bearer {made['key']}"}
    assert local_stack.request("GET", "/v1/payments", headers=headers).status_code == 200

    assert command("keys", "revoke", made["id"]).returncode == 0

    wait_for(lambda: local_stack.request("GET", "/v1/payments", headers=headers).status_code == 401)
    listed = {key["id"]: key for key in parsed(command("keys", "list", "--json"))}
    assert (listed[made["id"]]["status"], listed[made["id"]]["label"]) == ("revoked", "till 4")
    assert made["key"] not in command("keys", "list").stdout


def test_events_are_told_a_line_each_in_order(local_stack: RunningStack, command: Command) -> None:
    payment = local_stack.pay().json()["id"]

    done = command("events", "tail", "--once", "--json", "--payment", payment)

    told = [json.loads(line)["type"] for line in done.stdout.splitlines()]
    assert told == ["payment.accepted", "payment.sending", "payment.succeeded"]


def test_a_merchant_hears_of_a_payment_within_seconds(local_stack: RunningStack) -> None:
    delivered = local_stack.metric("holdfast_webhook_deliveries_total", result="delivered")
    with webhook_receiver() as receiver:
        receiver.statuses = [500]
        made = local_stack.request(
            "POST", "/v1/webhook_endpoints", json={"url": receiver.url}
        ).json()
        payment = local_stack.pay().json()["id"]

        wait_for(lambda: receiver.got)
        # The first try failed; after the endpoint is enabled, waiting events are sent at once.
        path = f"/v1/webhook_endpoints/{made['id']}"
        wait_for(lambda: local_stack.get(path).json()["last_error"] == "status 500")
        local_stack.request("PATCH", path, json={"status": "paused"})
        wait_for(lambda: local_stack.get(path).json()["pending"] == 1)
        local_stack.request("PATCH", path, json={"status": "enabled"})
        wait_for(lambda: len(receiver.got) == 2)

        headers, body = receiver.got[1]
        assert Webhook(made["secret"]).verify(body, headers)["data"]["payment_id"] == payment
        wait_for(lambda: local_stack.get(path).json()["last_delivered_at"])
        local_stack.request("DELETE", path)
    assert (
        local_stack.metric("holdfast_webhook_deliveries_total", result="delivered") == delivered + 1
    )


def test_the_doctor_finds_a_running_stack_sound(command: Command) -> None:
    findings = parsed(command("doctor", "--json"))

    assert {finding["check"]: finding["state"] for finding in findings} == {
        **dict.fromkeys(("settings", "provider", "database", "migrations"), "pass"),
        **dict.fromkeys(("pool budget", "clock", "reconciler", "money", "webhooks out"), "pass"),
        "event months": "pass",
        **dict.fromkeys(("database settings", "api keys"), "pass"),
    }


def test_the_doctor_says_what_is_wrong_and_what_to_do(
    local_stack: RunningStack, tmp_path: Path
) -> None:
    ill = run_command(
        "doctor",
        "--json",
        HOLDFAST_HOME=str(tmp_path),
        DATABASE_URL=local_stack.database_url,
        HOLDFAST_WEB_WORKERS="100",
        STRIPE_API_BASE=f"http://127.0.0.1:{free_port()}",
        STRIPE_API_KEY="sk_test_x",
    )
    away = run_command(
        "doctor",
        HOLDFAST_HOME=str(tmp_path),
        DATABASE_URL=f"postgresql://127.0.0.1:{free_port()}/x",
    )
    wrong = run_command("doctor", HOLDFAST_WEB_WORKERS="two")

    states = {finding["check"]: finding["state"] for finding in json.loads(ill.stdout)}
    assert (states["settings"], states["provider"], states["pool budget"]) == (
        "warn",
        "fail",
        "fail",
    )
    assert [done.returncode for done in (ill, away, wrong)] == [1, 1, 1]
    assert "database" in away.stdout
    assert "HOLDFAST_WEB_WORKERS" in wrong.stdout


def test_without_a_database_a_command_says_where_it_looked(tmp_path: Path) -> None:
    done = run_command("payments", "list", HOLDFAST_HOME=str(tmp_path))

    assert done.returncode == 2
    assert "DATABASE_URL" in done.stderr
    assert str(tmp_path) in done.stderr


def test_a_developers_shell_reaches_no_part_of_a_local_run(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    with running_stack(tmp_path_factory.mktemp("shell"), **SHELL) as local_stack:
        paid = local_stack.pay(reference="Zürich, 東京")
        listed = run_command(
            *("payments", "list", "--reference", "Zürich, 東京", "--json"),
            **{**SHELL, "HOLDFAST_HOME": local_stack.home},
        )
        found = run_command("doctor", "--json", **{**SHELL, "HOLDFAST_HOME": local_stack.home})

    assert (paid.status_code, paid.json()["status"]) == (201, "succeeded")
    assert [one["id"] for one in parsed(listed)] == [paid.json()["id"]]
    states = {one["check"]: one["state"] for one in json.loads(found.stdout)}
    assert states["database settings"] == "pass", found.stdout
    assert states["database"] != "fail"
