"""All processes, real TLS, real PostgreSQL: the answers to callers, and both books."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

import pytest
import requests

from tests.support.stack.running_stack import RunningStack, running_stack, wait_for


@pytest.fixture(scope="module")
def local_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    with running_stack(tmp_path_factory.mktemp("local_stack")) as local_stack:
        yield local_stack


@pytest.fixture(autouse=True)
def _healthy_provider(local_stack: RunningStack) -> Iterator[None]:
    yield
    local_stack.control({"ok": 1})


def test_a_payment_is_charged_and_found_again(local_stack):
    reference = str(uuid4())

    paid = local_stack.pay(reference=reference)

    assert paid.status_code == 201
    payment = paid.json()
    assert (payment["status"], payment["amount_captured"]) == ("succeeded", 2599)
    assert local_stack.get(paid.headers["Location"]).json() == payment
    listed = local_stack.get(f"/v1/payments?reference={reference}").json()["data"]
    assert [one["id"] for one in listed] == [payment["id"]]
    assert len(local_stack.charges(reference)) == 1


def test_the_same_key_again_is_answered_from_the_books(local_stack):
    key, reference = str(uuid4()), str(uuid4())

    first = local_stack.pay(key, reference=reference)
    again = local_stack.pay(key, reference=reference)

    assert again.json() == first.json()
    assert again.headers["Idempotent-Replayed"] == "true"
    assert len(local_stack.charges(reference)) == 1


@pytest.mark.parametrize(("is_proven", "becomes"), [(True, "succeeded"), (False, "declined")])
def test_payment_continues_after_the_payers_action(local_stack, is_proven, becomes):
    asked = local_stack.pay(payment_method="pm_card_authenticationRequired", reference=str(uuid4()))
    payment = asked.json()
    before = local_stack.charges(payment["reference"])

    decision = {"payment_intent": payment["provider_ref"], "success": is_proven}
    local_stack.sandbox("POST", "/_complete_action", json=decision).raise_for_status()
    settled = local_stack.settled(payment["id"])

    assert (asked.status_code, payment["status"]) == (201, "requires_action")
    assert payment["outcome"] == "pending"
    assert "/_authenticate/" in payment["next_action"]["redirect_to_url"]["url"]
    assert before == []
    assert (settled["status"], settled["next_action"]) == (becomes, None)
    assert len(local_stack.charges(payment["reference"])) == int(is_proven)


def test_half_sent_requests_stop_neither_plane(local_stack):
    half = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nhalf"
    planes = [urlsplit(url) for url in (local_stack.url, local_stack.ops_url)]
    with contextlib.ExitStack() as attack:
        for plane in planes * 48:
            client = socket.create_connection((plane.hostname, plane.port))
            attack.enter_context(client).sendall(half)

        paid = local_stack.pay()
        seen = requests.get(f"{local_stack.ops_url}/diagnostics/health", timeout=60)

    assert paid.status_code == 201
    assert seen.json()["status"] != "fail"


def test_a_key_with_another_body_is_refused(local_stack):
    key = str(uuid4())
    local_stack.pay(key)

    other = local_stack.pay(key, amount=100)

    assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")


def test_two_at_once_with_one_key_charge_once(local_stack):
    key, reference = str(uuid4()), str(uuid4())
    answers: list[requests.Response] = []
    together = threading.Barrier(2)

    def pay() -> None:
        together.wait(60)
        answers.append(local_stack.pay(key, reference=reference))

    threads = [threading.Thread(target=pay) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert {answer.status_code for answer in answers} <= {201, 409}
    assert len(local_stack.charges(reference)) == 1


def test_a_declined_card_is_final_and_says_why(local_stack):
    answer = local_stack.pay(payment_method="pm_card_chargeDeclinedInsufficientFunds")

    assert answer.status_code == 402
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.json()["code"] == "card_declined"
    assert (
        local_stack.get(answer.headers["Location"]).json()["decline"]["code"]
        == "insufficient_funds"
    )


@pytest.mark.measures
@pytest.mark.parametrize("fault", ["hang", "hang_after_charge"])
def test_hung_call_is_answered_in_time_and_settled_later(local_stack, fault):
    reference = str(uuid4())
    # The charge itself hangs; the create call does not.
    local_stack.control({fault: 1}, reference=reference, operations=["confirm"])

    began_s = time.monotonic()
    answer = local_stack.pay(reference=reference)
    took_s = time.monotonic() - began_s
    local_stack.control({"ok": 1})

    assert (answer.status_code, answer.json()["status"]) == (202, "unknown")
    # Five seconds, and the delay of a busy machine; without a deadline the wait has no end.
    assert 4.7 < took_s < 8
    assert local_stack.settled(answer.json()["id"])["status"] == "succeeded"
    assert len(local_stack.charges(reference)) == 1


@pytest.mark.parametrize(
    "fault",
    ["reset", "reset_after_charge", "drip", "garbage", "error_429", "error_500_saved", "error_503"],
)
def test_provider_faults_cause_no_500_and_no_second_charge(local_stack, fault):
    reference = str(uuid4())
    local_stack.control({fault: 1}, reference=reference)

    answer = local_stack.pay(reference=reference)
    local_stack.control({"ok": 1})

    assert answer.status_code in (201, 202), answer.text
    assert local_stack.settled(answer.json()["id"], timeout_s=60)["status"] == "succeeded"
    assert len(local_stack.charges(reference)) == 1


def test_a_worker_killed_in_the_middle_of_a_charge_loses_nothing(local_stack):
    reference = str(uuid4())
    local_stack.control({"hang_after_charge": 1}, reference=reference, operations=["confirm"])
    lost: list[Exception] = []

    def pay() -> None:
        try:
            local_stack.pay(reference=reference)
        except requests.RequestException as error:
            lost.append(error)

    caller = threading.Thread(target=pay)
    caller.start()
    wait_for(lambda: local_stack.charges(reference))
    for worker in _children(local_stack.pids["data_plane"]):
        os.kill(worker, signal.SIGKILL)
    caller.join(60)
    local_stack.control({"ok": 1})

    assert lost, "the caller's connection ended without an answer"
    (payment,) = wait_for(
        lambda: local_stack.get(f"/v1/payments?reference={reference}").json().get("data")
    )
    assert local_stack.settled(payment["id"], timeout_s=60)["status"] == "succeeded"
    assert len(local_stack.charges(reference)) == 1


def test_the_incident_s_words_are_in_the_log(local_stack):
    reference = str(uuid4())
    local_stack.control({"hang": 1}, reference=reference, operations=["confirm"])

    local_stack.pay(reference=reference)

    def said() -> bool:
        return any(
            "Payment service connection failed - timeout after 5000ms" in str(event)
            and "Read timed out. (read timeout=5)" in str(event)
            for event in local_stack.log_events()
        )

    wait_for(said)


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
