"""The ops plane: each route checks its Host, and acts on the instance need the scope `platform`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from uuid import UUID

import pytest
from flask import Flask
from flask.testing import FlaskClient

from service.app.ops_plane import (
    create_ops_app,
)
from service.payments.merchants import SCOPES
from service.settings import Settings, SettingsError
from service.startup.gunicorn import ROOT
from tests.incidents.test_drill_safety import CONSOLE_WRITES, WRITES

MakeKey = Callable[..., str]
OPEN = ["/healthz", "/readyz", "/metrics"]


@pytest.fixture(scope="module")
def ops(settings: Settings) -> Flask:
    return create_ops_app(
        dataclasses.replace(
            settings,
            stripe_api_base="https://127.0.0.1:1",
            stripe_api_key="sk_test_sandbox",
            simulation_enabled=True,
            ops_hosts="console.example",
        )
    )


@pytest.fixture
def ops_client(ops: Flask) -> FlaskClient:
    return ops.test_client()


def paths_of(app: Flask) -> set[str]:
    filled = {rule.rule.replace("<path:filename>", "x.js") for rule in app.url_map.iter_rules()}
    return {path.replace("<", "").replace(">", "") for path in filled} - set(OPEN)


def test_every_route_but_probes_refuses_a_foreign_host(ops: Flask, ops_client: FlaskClient) -> None:
    asked = {*paths_of(ops), "/no/such/path"}
    assert len(asked) > 15

    foreign = {"Host": "rebound.example:8081"}
    answers = {path: ops_client.get(path, headers=foreign).status_code for path in asked}

    assert set(answers.values()) == {403}, answers
    assert [ops_client.get(path, headers=foreign).status_code for path in OPEN] == [200] * 3
    for name in ("console.example", "localhost:8081", "[::1]:8081", "127.0.0.1"):
        assert ops_client.get("/console/state", headers={"Host": name}).status_code == 200


@pytest.mark.parametrize(
    ("method", "path"), [*WRITES, *CONSOLE_WRITES, ("GET", "/diagnostics/health?fresh=1")]
)
def test_one_merchants_operator_cannot_act_on_the_instance(
    ops_client: FlaskClient, make_key: MakeKey, merchant_id: UUID, method: str, path: str
) -> None:
    def status(*scopes: str) -> int:
        headers = {"Authorization": f"Bearer {make_key(merchant_id, scopes=scopes)}"}
        body = None if method == "GET" else {}
        return ops_client.open(path, method=method, json=body, headers=headers).status_code

    assert status(*SCOPES) == 403
    assert status("platform") != 403


def test_keys_over_rest_never_get_or_end_the_platform_scope(
    client: FlaskClient, make_key: MakeKey, merchant_id: UUID
) -> None:
    everything = make_key(merchant_id, scopes=(*SCOPES, "platform"))
    operator = {"Authorization": f"Bearer {make_key(merchant_id)}"}
    platform = {"Authorization": f"Bearer {everything}"}

    for headers in (operator, platform):
        body = {"scopes": ["read", "platform"]}
        assert client.post("/v1/api_keys", json=body, headers=headers).status_code == 422
    made = client.post("/v1/api_keys", json={"scopes": ["operator"]}, headers=platform).json
    listed = client.get("/v1/api_keys", headers=operator).json["data"]
    one = f"/v1/api_keys/{everything.split('_')[2]}"

    assert made["scopes"] == ["operator"]
    assert [*SCOPES, "platform"] in [key["scopes"] for key in listed]
    assert client.delete(one, headers=operator).status_code == 403
    other = {"Authorization": f"Bearer {make_key(merchant_id, scopes=(*SCOPES, 'platform'))}"}
    assert client.delete(one, headers=other).status_code == 204


@pytest.mark.parametrize("host", ["0.0.0.0", "[::]", "10.0.0.5", "ops.example"])  # noqa: S104
def test_an_open_ops_plane_needs_a_setting_that_says_so(host: str) -> None:
    settings = Settings(ops_bind=f"{host}:8081")

    with pytest.raises(SettingsError, match="HOLDFAST_OPS_OPEN"):
        settings.require_ops_bind()

    dataclasses.replace(settings, ops_open=True).require_ops_bind()


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "[::1]", "localhost"])
def test_an_ops_plane_on_loopback_needs_none(host: str) -> None:
    Settings(ops_bind=f"{host}:8081").require_ops_bind()


@pytest.mark.parametrize(
    "name", ["compose.yaml", "kubernetes/base/settings.env", "ecs/task-definition.json"]
)
def test_the_manifests_say_that_the_ops_plane_is_open(name: str) -> None:
    assert "HOLDFAST_OPS_OPEN" in Path(ROOT, "deploy", name).read_text()
