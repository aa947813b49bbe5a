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

from tests.support.stack.running_house import House, running_house

# The object that each call needs; by default a succeeded payment.
NEEDS = {"capture": "reserved", "void": "reserved", "reconcile": "doubtful", "resolve": "doubtful"}


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with running_house(
        tmp_path_factory.mktemp("house"), HOLDFAST_PROVIDER_TIMEOUT_MS="2500"
    ) as house:
        yield house


def test_every_example_on_the_page_runs(house: House) -> None:
    page = requests.get(f"{house.url}/docs", timeout=60).text
    commands = [html.unescape(text) for text in re.findall(r"<pre>(curl .*?)</pre>", page, re.S)]

    refused = {}
    for command in commands:
        status, answer = run(command, house)
        if not 200 <= status < 300:
            refused[command] = (status, answer)

    # Each call of the contract except the provider's own, and the first payment.
    assert len(commands) == len(re.findall('<span class="method">', page))
    assert refused == {}


def run(command: str, house: House) -> tuple[int, str]:
    """Run the command in a shell with the variables that the page names; returns the answer's status."""
    ran = subprocess.run(
        ["sh", "-c", f"{command} -w '\\n%{{http_code}}'"],
        env={
            "PATH": os.environ["PATH"],
            "HOLDFAST_URL": house.url,
            "HOLDFAST_API_KEY": house.api_key,
            **ids(command, house),
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    answer, _, status = ran.stdout.rpartition("\n")
    return int(status), answer


def ids(command: str, house: House) -> dict[str, str]:
    """One object of each kind that the command names, in the state that the command needs."""
    wanted = set(re.findall(r"\$([A-Z]+_ID)", command))
    made: dict[str, str] = {}
    moved = re.search(r'/(refunds|capture|void)(?:/\$REFUND_ID)?/resolve"', command)
    if moved:
        return doubtful_movement(house, moved[1])
    if wanted & {"PAYMENT_ID", "REFUND_ID"}:
        verb = re.search(r'/(\w+)"', command)
        made["PAYMENT_ID"] = payment(house, NEEDS.get(verb[1] if verb else "", "paid"))
    if "REFUND_ID" in wanted:
        made["REFUND_ID"] = ask(house, f"/v1/payments/{made['PAYMENT_ID']}/refunds", amount=1)["id"]
    if wanted & {"ENDPOINT_ID", "EVENT_ID"}:
        endpoint = ask(house, "/v1/webhook_endpoints", url="http://127.0.0.1:9/hook")
        made["ENDPOINT_ID"] = endpoint["id"]
    if "EVENT_ID" in wanted:
        about = payment(house, "paid")
        events = house.get(f"/v1/payments/{about}/timeline").json()["data"]
        made["EVENT_ID"] = events[-1]["id"]
    if "KEY_ID" in wanted:
        made["KEY_ID"] = ask(house, "/v1/api_keys", scopes=["read"])["id"]
    return made


def doubtful_movement(house: House, kind: str) -> dict[str, str]:
    """A payment with a refund, capture or void whose call was not answered."""
    payment_id = payment(house, "paid" if kind == "refunds" else "reserved")
    operation = {"refunds": "refund", "capture": "capture", "void": "cancel"}[kind]
    house.control({"hang": 1}, operations=[operation])
    try:
        body = {} if kind == "void" else {"amount": 1}
        made = ask(house, f"/v1/payments/{payment_id}/{kind}", **body)
    finally:
        house.control({"ok": 1})
    return {"PAYMENT_ID": payment_id, "REFUND_ID": made["id"]}


def payment(house: House, state: str) -> str:
    if state == "doubtful":
        house.control({"hang_after_charge": 1}, operations=["confirm", "retrieve"])
        try:
            return str(house.pay().json()["id"])
        finally:
            house.control({"ok": 1})
    method = "manual" if state == "reserved" else "automatic"
    return str(house.pay(capture_method=method).json()["id"])


def ask(house: House, path: str, **body: Any) -> dict[str, Any]:
    answer = house.request("POST", path, json=body, headers={"Idempotency-Key": str(uuid4())})
    assert answer.ok, answer.text
    made: dict[str, Any] = answer.json()
    return made
