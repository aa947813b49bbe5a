"""Every example on /docs runs as printed."""

from __future__ import annotations

import html
import os
import re
import subprocess
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest
import requests

from tests.support.stack.running_stack import RunningStack, running_stack

# The object that each call needs; by default a succeeded payment.
NEEDS = {"capture": "reserved", "void": "reserved", "reconcile": "doubtful", "resolve": "doubtful"}


@pytest.fixture(scope="module")
def local_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    with running_stack(
        tmp_path_factory.mktemp("local_stack"), HOLDFAST_PROVIDER_TIMEOUT_MS="2500"
    ) as local_stack:
        yield local_stack


def test_every_example_on_the_page_runs(local_stack: RunningStack) -> None:
    page = requests.get(f"{local_stack.url}/docs", timeout=60).text
    commands = [html.unescape(text) for text in re.findall(r"<pre>(curl .*?)</pre>", page, re.S)]

    refused = {}
    for command in commands:
        status, answer = run(command, local_stack)
        if not 200 <= status < 300:
            refused[command] = (status, answer)

    # Each call of the contract except the provider's own, and the first payment.
    assert len(commands) == len(re.findall('<span class="method">', page))
    assert refused == {}


def run(command: str, local_stack: RunningStack) -> tuple[int, str]:
    """Run the command in a shell with the variables that the page names; returns the answer's status."""
    ran = subprocess.run(
        ["sh", "-c", f"{command} -w '\\n%{{http_code}}'"],
        env={
            "PATH": os.environ["PATH"],
            "HOLDFAST_URL": local_stack.url,
            "HOLDFAST_API_KEY": local_stack.api_key,
            **ids(command, local_stack),
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    answer, _, status = ran.stdout.rpartition("\n")
    return int(status), answer


def ids(command: str, local_stack: RunningStack) -> dict[str, str]:
    """One object of each kind that the command names, in the state that the command needs."""
    wanted = set(re.findall(r"\$([A-Z]+_ID)", command))
    made: dict[str, str] = {}
    moved = re.search(r'/(refunds|capture|void)(?:/\$REFUND_ID)?/resolve"', command)
    if moved:
        return doubtful_movement(local_stack, moved[1])
    if wanted & {"PAYMENT_ID", "REFUND_ID"}:
        verb = re.search(r'/(\w+)"', command)
        made["PAYMENT_ID"] = payment(local_stack, NEEDS.get(verb[1] if verb else "", "paid"))
    if "REFUND_ID" in wanted:
        made["REFUND_ID"] = ask(
            local_stack, f"/v1/payments/{made['PAYMENT_ID']}/refunds", amount=1
        )["id"]
    if wanted & {"ENDPOINT_ID", "EVENT_ID"}:
        endpoint = ask(local_stack, "/v1/webhook_endpoints", url="http://127.0.0.1:9/hook")
        made["ENDPOINT_ID"] = endpoint["id"]
    if "EVENT_ID" in wanted:
        about = payment(local_stack, "paid")
        events = local_stack.get(f"/v1/payments/{about}/timeline").json()["data"]
        made["EVENT_ID"] = events[-1]["id"]
    if "KEY_ID" in wanted:
        made["KEY_ID"] = ask(local_stack, "/v1/api_keys", scopes=["read"])["id"]
    return made


def doubtful_movement(local_stack: RunningStack, kind: str) -> dict[str, str]:
    """A payment with a refund, capture or void whose call was not answered."""
    payment_id = payment(local_stack, "paid" if kind == "refunds" else "reserved")
    operation = {"refunds": "refund", "capture": "capture", "void": "cancel"}[kind]
    local_stack.control({"hang": 1}, operations=[operation])
    try:
        body = {} if kind == "void" else {"amount": 1}
        made = ask(local_stack, f"/v1/payments/{payment_id}/{kind}", **body)
    finally:
        local_stack.control({"ok": 1})
    return {"PAYMENT_ID": payment_id, "REFUND_ID": made["id"]}


def payment(local_stack: RunningStack, state: str) -> str:
    if state == "doubtful":
        local_stack.control({"hang_after_charge": 1}, operations=["confirm", "retrieve"])
        try:
            return str(local_stack.pay().json()["id"])
        finally:
            local_stack.control({"ok": 1})
    method = "manual" if state == "reserved" else "automatic"
    return str(local_stack.pay(capture_method=method).json()["id"])


def ask(local_stack: RunningStack, path: str, **body: Any) -> dict[str, Any]:
    answer = local_stack.request("POST", path, json=body, headers={"Idempotency-Key": str(uuid4())})
    assert answer.ok, answer.text
    made: dict[str, Any] = answer.json()
    return made
