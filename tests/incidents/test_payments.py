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

from tests.support.stack.running_house import House, running_house, wait_for


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with running_house(tmp_path_factory.mktemp("house")) as house:
        yield house


@pytest.fixture(autouse=True)
def _healthy_provider(house: House) -> Iterator[None]:
    yield
    house.control({"ok": 1})


def test_a_payment_is_charged_and_found_again(house):
    reference = str(uuid4())

    paid = house.pay(reference=reference)

    assert paid.status_code == 201
    payment = paid.json()
    assert (payment["status"], payment["amount_captured"]) == ("succeeded", 2599)
    assert house.get(paid.headers["Location"]).json() == payment
    listed = house.get(f"/v1/payments?reference={reference}").json()["data"]
    assert [one["id"] for one in listed] == [payment["id"]]
    assert len(house.charges(reference)) == 1


def test_the_same_key_again_is_answered_from_the_books(house):
    key, reference = str(uuid4()), str(uuid4())

    first = house.pay(key, reference=reference)
    again = house.pay(key, reference=reference)

    assert again.json() == first.json()
    assert again.headers["Idempotent-Replayed"] == "true"
    assert len(house.charges(reference)) == 1


@pytest.mark.parametrize(("is_proven", "becomes"), [(True, "succeeded"), (False, "declined")])
def test_payment_continues_after_the_payers_action(house, is_proven, becomes):
    asked = house.pay(payment_method="pm_card_authenticationRequired", reference=str(uuid4()))
    payment = asked.json()
    before = house.charges(payment["reference"])

    decision = {"payment_intent": payment["provider_ref"], "success": is_proven}
    house.sandbox("POST", "/_complete_action", json=decision).raise_for_status()
    settled = house.settled(payment["id"])

    assert (asked.status_code, payment["status"]) == (201, "requires_action")
    assert payment["outcome"] == "pending"
    assert "/_authenticate/" in payment["next_action"]["redirect_to_url"]["url"]
    assert before == []
    assert (settled["status"], settled["next_action"]) == (becomes, None)
    assert len(house.charges(payment["reference"])) == int(is_proven)


def test_half_sent_requests_stop_neither_plane(house):
    half = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nhalf"
    planes = [urlsplit(url) for url in (house.url, house.ops_url)]
    with contextlib.ExitStack() as attack:
        for plane in planes * 48:
            client = socket.create_connection((plane.hostname, plane.port))
            attack.enter_context(client).sendall(half)

        paid = house.pay()
        seen = requests.get(f"{house.ops_url}/diagnostics/health", timeout=60)

    assert paid.status_code == 201
    assert seen.json()["status"] != "fail"


def test_a_key_with_another_body_is_refused(house):
    key = str(uuid4())
    house.pay(key)

    other = house.pay(key, amount=100)

    assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")


def test_two_at_once_with_one_key_charge_once(house):
    key, reference = str(uuid4()), str(uuid4())
    answers: list[requests.Response] = []
    together = threading.Barrier(2)

    def pay() -> None:
        together.wait(60)
        answers.append(house.pay(key, reference=reference))

    threads = [threading.Thread(target=pay) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert {answer.status_code for answer in answers} <= {201, 409}
    assert len(house.charges(reference)) == 1


def test_a_declined_card_is_final_and_says_why(house):
    answer = house.pay(payment_method="pm_card_chargeDeclinedInsufficientFunds")

    assert answer.status_code == 402
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.json()["code"] == "card_declined"
    assert house.get(answer.headers["Location"]).json()["decline"]["code"] == "insufficient_funds"


@pytest.mark.measures
@pytest.mark.parametrize("fault", ["hang", "hang_after_charge"])
def test_hung_call_is_answered_in_time_and_settled_later(house, fault):
    reference = str(uuid4())
    # The charge itself hangs; the create call does not.
    house.control({fault: 1}, reference=reference, operations=["confirm"])

    began_s = time.monotonic()
    answer = house.pay(reference=reference)
    took_s = time.monotonic() - began_s
    house.control({"ok": 1})

    assert (answer.status_code, answer.json()["status"]) == (202, "unknown")
    # Five seconds, and the delay of a busy machine; without a deadline the wait has no end.
    assert 4.7 < took_s < 8
    assert house.settled(answer.json()["id"])["status"] == "succeeded"
    assert len(house.charges(reference)) == 1


@pytest.mark.parametrize(
    "fault",
    ["reset", "reset_after_charge", "drip", "garbage", "error_429", "error_500_saved", "error_503"],
)
def test_provider_faults_cause_no_500_and_no_second_charge(house, fault):
    reference = str(uuid4())
    house.control({fault: 1}, reference=reference)

    answer = house.pay(reference=reference)
    house.control({"ok": 1})

    assert answer.status_code in (201, 202), answer.text
    assert house.settled(answer.json()["id"], timeout_s=60)["status"] == "succeeded"
    assert len(house.charges(reference)) == 1


def test_a_worker_killed_in_the_middle_of_a_charge_loses_nothing(house):
    reference = str(uuid4())
    house.control({"hang_after_charge": 1}, reference=reference, operations=["confirm"])
    lost: list[Exception] = []

    def pay() -> None:
        try:
            house.pay(reference=reference)
        except requests.RequestException as error:
            lost.append(error)

    caller = threading.Thread(target=pay)
    caller.start()
    wait_for(lambda: house.charges(reference))
    for worker in _children(house.pids["data_plane"]):
        os.kill(worker, signal.SIGKILL)
    caller.join(60)
    house.control({"ok": 1})

    assert lost, "the caller's connection ended without an answer"
    (payment,) = wait_for(
        lambda: house.get(f"/v1/payments?reference={reference}").json().get("data")
    )
    assert house.settled(payment["id"], timeout_s=60)["status"] == "succeeded"
    assert len(house.charges(reference)) == 1


def test_the_incident_s_words_are_in_the_log(house):
    reference = str(uuid4())
    house.control({"hang": 1}, reference=reference, operations=["confirm"])

    house.pay(reference=reference)

    def said() -> bool:
        return any(
            "Payment service connection failed - timeout after 5000ms" in str(event)
            and "Read timed out. (read timeout=5)" in str(event)
            for event in house.log_events()
        )

    wait_for(said)


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
