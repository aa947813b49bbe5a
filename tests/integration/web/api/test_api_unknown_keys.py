"""Strangers: invented API keys cost the database little, and keep out no key that is real."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic

import pytest
from flask import Flask
from flask.testing import FlaskClient
from prometheus_client import REGISTRY

from service.app.data_plane import (
    create_app,
)
from service.payments.merchants import generate_key
from service.settings import Settings
from service.web.http import auth, rate_limits
from tests.support.providers.booked_provider import BookedProvider

Status = Callable[..., int]


@pytest.fixture
def app(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Flask:
    """A separate application, which counts only this test's unknown keys."""
    return _app(settings, tmp_path_factory.mktemp("metrics"))


@pytest.fixture
def status(client: FlaskClient) -> Status:
    def status(api_key: str, address: str = "192.0.2.7") -> int:
        headers = {"Authorization": f"Bearer {api_key}"}
        answer = client.get("/v1/payments", headers=headers, environ_base={"REMOTE_ADDR": address})
        return answer.status_code

    return status


def look_ups() -> float:
    name, labels = "holdfast_db_statement_duration_seconds_count", {"statement": "key"}
    return REGISTRY.get_sample_value(name, labels) or 0.0


def each_limit(began_s: float) -> float:
    """How many look-ups one address may have caused since then, on however slow a machine."""
    return rate_limits.EACH_BURST + rate_limits.EACH_PER_S * (monotonic() - began_s) + 1


def test_one_address_can_ask_for_few_invented_keys(status: Status) -> None:
    before, began_s = look_ups(), monotonic()

    seen = [status(generate_key("test")) for _ in range(300)]

    assert set(seen) == {401, 429}
    assert look_ups() - before <= each_limit(began_s)
    # Another address still gets answers about its own keys.
    assert status(generate_key("test"), "192.0.2.8") == 401


@pytest.mark.parametrize("network", ["10.{a}.{b}.1", "2001:db8:{a:x}:{b:x}::1"])
def test_many_addresses_together_are_bounded_as_well(status: Status, network: str) -> None:
    before, began_s = look_ups(), monotonic()

    for number in range(400):
        status(generate_key("test"), network.format(a=number // 200, b=number % 200))

    refilled = rate_limits.TOGETHER_PER_S * (monotonic() - began_s) + 1
    assert look_ups() - before <= rate_limits.TOGETHER_BURST + refilled


def test_addresses_of_one_ipv6_network_are_one_stranger(status: Status) -> None:
    began_s = monotonic()

    seen = [status(generate_key("test"), f"2001:db8::{number:x}") for number in range(1, 200)]

    assert seen.count(401) <= each_limit(began_s)


def test_invented_key_costs_one_look_up_in_all(status: Status) -> None:
    before, invented = look_ups(), generate_key("test")

    assert [status(invented) for _ in range(20)] == [401] * 20
    assert look_ups() - before == 1


def test_strangers_neither_evict_nor_keep_out_real_keys(
    status: Status, api_key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auth, "REMEMBERED", 2)
    monkeypatch.setattr(auth, "UNKNOWN_REMEMBERED", 2)
    assert status(api_key) == 200
    for _ in range(100):
        status(generate_key("test"))
    before = look_ups()

    assert status(api_key) == 200
    assert look_ups() == before
    # Nor when it must be read again, from the address that has used up its share.
    monkeypatch.setattr(auth, "monotonic", lambda: 10.0**9)
    assert status(api_key) == 200
    assert look_ups() == before + 1


def test_ids_without_a_key_are_remembered_up_to_a_bound(
    status: Status, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auth, "UNKNOWN_REMEMBERED", 3)
    first, *others = [generate_key("test") for _ in range(4)]
    assert [status(key) for key in (first, *others)] == [401] * 4
    before = look_ups()

    # The newest three cost nothing; the oldest gave its place up, and is looked for again.
    assert [status(key) for key in others] == [401] * 3
    assert look_ups() == before
    assert status(first) == 401
    assert look_ups() == before + 1


def test_a_new_worker_knows_the_keys_of_its_host(
    settings: Settings, api_key: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    metrics = tmp_path_factory.mktemp("metrics")

    def status(app: Flask, key: str) -> int:
        headers = {"Authorization": f"Bearer {key}"}
        return app.test_client().get("/v1/payments", headers=headers).status_code

    old, began_s = _app(settings, metrics), monotonic()
    assert status(old, api_key) == 200
    seen = [status(old, generate_key("test")) for _ in range(100)]
    new = _app(settings, metrics)

    seen += [status(new, generate_key("test")) for _ in range(100)]

    assert seen.count(401) <= each_limit(began_s)
    assert status(new, api_key) == 200


def _app(settings: Settings, metrics: object) -> Flask:
    import dataclasses

    mine = dataclasses.replace(settings, metrics_dir=metrics)  # type: ignore[arg-type]
    return create_app(mine, provider=BookedProvider())
