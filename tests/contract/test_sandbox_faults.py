"""Each fault of the sandbox has the effect of its name on the wire and in the books."""

from __future__ import annotations

import select
import socket
import ssl
import time
from uuid import uuid4

import pytest
import requests

from tests.support.processes.sandbox_process import API_KEY, SandboxProcess


def pay(sandbox: SandboxProcess, payment_id: str, **form: str) -> requests.Response:
    given = {"amount": "500", "currency": "usd", "payment_method": "pm_card_visa"}
    given |= {"confirm": "true", "metadata[payment_id]": payment_id} | form
    return sandbox.stripe("POST", "/payment_intents", key=payment_id, **given)


def charges(sandbox: SandboxProcess, payment_id: str) -> int:
    return len(sandbox.books(payment_id=payment_id))


@pytest.fixture
def payment_id() -> str:
    return f"pay_{uuid4().hex}"


@pytest.mark.parametrize(("fault", "status"), [("error_429", 429), ("error_503", 503)])
def test_a_refusal_at_the_door_charges_nothing_and_spends_no_key(
    sandbox, payment_id, fault, status
):
    sandbox.control(mix={fault: 1}, times=1)

    faulty = pay(sandbox, payment_id)
    again = pay(sandbox, payment_id)

    assert faulty.status_code == status
    assert again.status_code == 200
    assert "Idempotent-Replayed" not in again.headers
    assert charges(sandbox, payment_id) == 1


@pytest.mark.parametrize(
    ("fault", "charged"),
    [("hang", 0), ("hang_after_charge", 1), ("reset", 0), ("reset_after_charge", 1)],
)
def test_no_answer_comes_and_only_the_books_tell_why(sandbox, payment_id, fault, charged):
    sandbox.control(mix={fault: 1}, hang_s=0.2)

    with pytest.raises(requests.ConnectionError):
        pay(sandbox, payment_id)

    assert charges(sandbox, payment_id) == charged
    assert sandbox.faults()["struck"] == {fault: 1}


def test_a_hang_outlasts_the_patience_of_the_caller(sandbox, payment_id):
    sandbox.control(mix={"hang": 1}, hang_s=60)

    form = {"amount": "500", "currency": "usd"}
    headers = {"Authorization": f"Bearer {API_KEY}"}
    with pytest.raises(requests.ReadTimeout):
        requests.post(
            f"{sandbox.url}/v1/payment_intents",
            data=form,
            headers=headers,
            verify=sandbox.ca_file,
            timeout=2,
        )


def test_a_reset_is_a_reset_on_the_wire(sandbox):
    sandbox.control(mix={"reset": 1})
    port = int(sandbox.url.rpartition(":")[2])
    context = ssl.create_default_context(cafile=sandbox.ca_file)
    body = b"amount=500&currency=usd"
    head = f"POST /v1/payment_intents HTTP/1.1\r\nAuthorization: Bearer {API_KEY}\r\n"

    with (
        socket.create_connection(("127.0.0.1", port), timeout=60) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as client,
    ):
        client.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        poller = select.poll()
        poller.register(client, 0)  # Errors only.
        happened = poller.poll(5000)
        error = client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)

    assert happened
    assert error == 104  # ECONNRESET


def test_a_late_charge_happens_after_the_connection_has_closed(sandbox, payment_id):
    sandbox.control(mix={"late_charge": 1}, late_s=3)

    with pytest.raises(requests.ConnectionError):
        pay(sandbox, payment_id)
    charged_at_once = charges(sandbox, payment_id)
    sandbox.clear()
    meanwhile = pay(sandbox, payment_id)

    assert charged_at_once == 0
    assert meanwhile.status_code == 409
    [movement] = sandbox.wait_for_books(payment_id=payment_id)
    assert movement["kind"] == "charge"


def test_a_dripping_body_comes_a_byte_at_a_time_and_is_true(sandbox, payment_id):
    sandbox.control(mix={"drip": 1}, drip_ms=1)

    begun_s = time.monotonic()
    answer = pay(sandbox, payment_id)
    took_s = time.monotonic() - begun_s

    assert answer.json()["status"] == "succeeded"
    assert took_s >= (len(answer.content) - 1) / 1000
    assert charges(sandbox, payment_id) == 1


@pytest.mark.parametrize("fault", ["drip", "truncate"])
def test_truncated_body_belongs_to_an_executed_charge(sandbox, payment_id, fault):
    sandbox.control(mix={fault: 1}, drip_ms=50, hang_s=0.1)

    with pytest.raises(requests.exceptions.ChunkedEncodingError):
        pay(sandbox, payment_id)

    assert charges(sandbox, payment_id) == 1


@pytest.mark.parametrize("fault", ["garbage", "truncate_head"])
def test_200_with_an_unreadable_body_belongs_to_a_charge(sandbox, payment_id, fault):
    sandbox.control(mix={fault: 1})

    answer = pay(sandbox, payment_id)

    assert answer.status_code == 200
    with pytest.raises(requests.JSONDecodeError):
        answer.json()
    assert charges(sandbox, payment_id) == 1


def test_a_plan_for_one_payment_leaves_the_others_alone(sandbox, payment_id):
    sandbox.control(mix={"error_503": 1}, reference="order-struck")

    faulty = pay(sandbox, payment_id, **{"metadata[reference]": "order-struck"})
    spared = pay(sandbox, f"{payment_id}2", **{"metadata[reference]": "order-spared"})

    assert (faulty.status_code, spared.status_code) == (503, 200)


def test_plan_for_one_callers_payments_does_not_affect_others(sandbox, payment_id):
    sandbox.control(mix={"error_503": 1}, reference_prefix="drill-7-")

    faulty = [
        pay(sandbox, f"{payment_id}{n}", **{"metadata[reference]": f"drill-7-{n}"}) for n in "ab"
    ]
    spared = pay(sandbox, f"{payment_id}c", **{"metadata[reference]": "drill-8-a"})

    assert [answer.status_code for answer in (*faulty, spared)] == [503, 503, 200]


def test_plan_for_one_payment_finds_its_confirm_by_metadata(sandbox, payment_id):
    intent = pay(sandbox, payment_id, confirm="false").json()
    sandbox.control(mix={"error_503": 1}, reference=payment_id, operations=["confirm"])

    confirmed = sandbox.stripe("POST", f"/payment_intents/{intent['id']}/confirm")

    assert confirmed.status_code == 503


def test_look_ups_stay_true_unless_the_plan_names_them(sandbox):
    sandbox.control(mix={"error_503": 1})
    spared = sandbox.stripe("GET", "/payment_intents")
    sandbox.control(mix={"error_503": 1}, operations=["list"])

    faulty = sandbox.stripe("GET", "/payment_intents")

    assert (spared.status_code, faulty.status_code) == (200, 503)


@pytest.mark.parametrize(
    "plan",
    [
        {"mix": {"earthquake": 1}},
        {"mix": {"ok": -1}},
        {"mix": {"ok": 0}},
        {"mix": {}},
        {"hang_s": "long"},
        {"operations": ["dance"]},
        {"times": 0},
        {"honour_keys": "no"},
        {"colour": "red"},
        [],
    ],
)
def test_invalid_plan_is_refused_and_changes_nothing(sandbox, plan):
    before = sandbox.faults()

    answer = sandbox.ask("POST", "/_control", json=plan)

    assert answer.status_code == 400
    assert answer.json()["error"]
    assert sandbox.faults() == before
