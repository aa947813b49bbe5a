"""The fault proxy: invisible while idle, each fault as callers really see it, and none that stays."""

from __future__ import annotations

import json
import os
import socket
import time

import psycopg2
import pytest

from service.lab.faultproxy.client import FaultRefused, ProxyGone
from service.providers.http.transport import NotSent, SentUnknown, Transport
from service.resilience.deadline import Deadline
from service.resilience.watchdog import Watchdog
from tests.support.processes.fault_proxy_process import running_fault_proxy
from tests.support.stack.running_stack import wait_for

HEADERS = {"Authorization": "Bearer sk_test_sandbox"}


@pytest.fixture(scope="module")
def proxy(sandbox_process, postgres):
    url = postgres.url("holdfast", "migrated")
    with running_fault_proxy(provider_url=sandbox_process.url, database_url=url) as proxy:
        yield proxy


@pytest.fixture
def transport(proxy, sandbox):
    transport = Transport(
        base_url=sandbox.url,
        ca_file=sandbox.ca_file,
        connect_timeout_s=1.0,
        max_connections=4,
        watchdog=Watchdog(),
        proxy_url=proxy.proxy_url,
    )
    yield transport
    transport.close()


@pytest.fixture
def holder(proxy):
    with proxy.holder() as holder:
        yield holder


def list_charges(transport, timeout_s=10.0):
    return transport.exchange(
        "GET", "/v1/payment_intents", headers=HEADERS, deadline=Deadline.after(timeout_s)
    )


def create(transport, key, timeout_s=3.0):
    return transport.exchange(
        "POST",
        "/v1/payment_intents",
        form={"amount": "100", "currency": "usd", "metadata[reference]": key},
        headers={**HEADERS, "Idempotency-Key": key},
        deadline=Deadline.after(timeout_s),
    )


def select_one(url):
    connection = psycopg2.connect(url, connect_timeout=30)
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
            return cursor.fetchone()[0]
    finally:
        connection.close()


def test_links_and_tls_work_without_a_fault(proxy, transport):
    assert list_charges(transport).status == 200
    assert select_one(proxy.database_url) == 1


def test_it_is_no_way_to_anywhere_else(proxy):
    host, port = proxy.proxy_url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as client:
        client.sendall(b"CONNECT example.org:443 HTTP/1.1\r\n\r\n")

        assert client.recv(100).startswith(b"HTTP/1.1 403")


@pytest.mark.parametrize(
    ("mode", "error", "kind"),
    [
        ("refuse", NotSent, "refused"),
        ("connect_timeout", NotSent, "connect_timeout"),
        ("stall", SentUnknown, "timeout"),
        ("drip", SentUnknown, "timeout"),
        ("reset", SentUnknown, "reset"),
    ],
)
def test_each_fault_has_its_effect_and_ends_on_command(transport, holder, mode, error, kind):
    list_charges(transport)
    holder.inject("provider", mode, ttl_s=10)

    with pytest.raises(error) as raised:
        create(transport, f"fault-{mode}")
    holder.clear()

    assert raised.value.kind == kind
    # A failure of the provider is not reported as the proxy's.
    assert error is NotSent or "proxy" not in raised.value.detail
    assert list_charges(transport).status == 200


@pytest.mark.parametrize("mode", ["stall", "reset", "drip"])
def test_request_is_executed_though_its_answer_is_lost(transport, holder, sandbox, mode):
    holder.inject("provider", mode, ttl_s=10)

    with pytest.raises(SentUnknown):
        create(transport, f"lost-{mode}")
    holder.clear()

    assert f"lost-{mode}" in list_charges(transport).body.decode()


def test_latency_is_added_once_to_each_answer(transport, holder):
    list_charges(transport)
    holder.inject("provider", "latency", ttl_s=60, pause_ms=5000)

    answer = list_charges(transport)

    assert 5000 <= answer.ms < 10_000


def test_a_held_answer_arrives_when_the_stall_ends(proxy, holder):
    connection = psycopg2.connect(proxy.database_url)
    began_s = time.monotonic()
    holder.inject("database", "stall", ttl_s=1)
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 2")

            assert cursor.fetchone() == (2,)
            assert time.monotonic() - began_s > 0.9
    finally:
        connection.close()


def test_refused_database_breaks_and_refuses_connections(proxy, holder):
    connection = psycopg2.connect(proxy.database_url)
    holder.inject("database", "refuse", ttl_s=10)

    with pytest.raises(psycopg2.OperationalError), connection.cursor() as cursor:
        cursor.execute("SELECT 1")
    with pytest.raises(psycopg2.OperationalError):
        select_one(proxy.database_url)
    connection.close()
    holder.clear()

    assert select_one(proxy.database_url) == 1


def test_a_fault_ends_at_its_ttl(proxy, holder):
    holder.inject("provider", "refuse", ttl_s=0.2)

    wait_for(lambda: proxy.mode("provider") is None)
    assert proxy.cleared_because() == "ttl"


def test_a_fault_ends_when_its_holder_is_gone(proxy, transport):
    holder = proxy.holder()
    holder.inject("provider", "stall", ttl_s=300)

    holder.close()

    wait_for(lambda: proxy.mode("provider") is None)
    # At once, and not for want of heartbeats.
    assert proxy.cleared_because() == "holder_gone"
    assert list_charges(transport).status == 200


def test_a_fault_ends_when_three_heartbeats_are_missing(proxy):
    order = {"do": "inject", "link": "provider", "mode": "stall", "ttl_s": 300}
    with proxy.say(json.dumps(order).encode() + b"\n"):
        wait_for(lambda: proxy.mode("provider") == "stall", every_s=0.01)

        wait_for(lambda: proxy.mode("provider") is None)
        assert proxy.cleared_because() == "heartbeats_missed"


def test_living_holder_keeps_its_fault_past_three_heartbeats(proxy, holder):
    holder.inject("provider", "stall", ttl_s=300)
    injected_s = time.monotonic()

    wait_for(lambda: time.monotonic() - injected_s > 4.0)

    assert proxy.mode("provider") == "stall"


def test_a_second_holder_is_refused_while_a_fault_is_on(proxy, holder):
    holder.inject("provider", "stall", ttl_s=10)

    with proxy.holder() as second, pytest.raises(FaultRefused, match="another holder"):
        second.inject("database", "stall", ttl_s=10)


@pytest.mark.parametrize(
    "order",
    [
        {"do": "inject", "link": "elsewhere", "mode": "stall", "ttl_s": 1},
        {"do": "inject", "link": "provider", "mode": "explode", "ttl_s": 1},
        {"do": "inject", "link": "provider", "mode": "stall", "ttl_s": 301},
        {"do": "inject", "link": "provider", "mode": "stall", "ttl_s": float("nan")},
        {"do": "inject", "link": "provider", "mode": "stall"},
        {"do": "dance"},
        ["inject"],
    ],
)
def test_invalid_order_is_refused_and_injects_no_fault(proxy, order):
    with proxy.say(json.dumps(order).encode() + b"\n") as control:
        answer = json.loads(control.makefile().readline())

    assert not answer["ok"]
    assert {link["mode"] for link in answer["links"].values()} == {None}


def test_after_a_kill_the_next_proxy_begins_without_a_fault(proxy, transport):
    holder = proxy.holder()
    holder.inject("provider", "refuse", ttl_s=300)

    proxy.kill()
    proxy.start()

    assert list_charges(transport).status == 200
    assert select_one(proxy.database_url) == 1
    with pytest.raises(ProxyGone):
        holder.describe()
    holder.close()


def test_nobody_else_on_the_machine_can_give_orders(proxy):
    assert os.stat(proxy.control_path).st_mode & 0o077 == 0
    assert os.stat(proxy.control_path.parent).st_mode & 0o077 == 0
