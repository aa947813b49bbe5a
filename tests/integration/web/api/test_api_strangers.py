"""A stranger's key, on every route there is: another merchant's objects look like none."""

from __future__ import annotations

import re
from collections.abc import Callable
from uuid import uuid4

from flask import Flask
from flask.testing import FlaskClient

from tests.integration.web.api.conftest import PAYMENT

VERDICT = {"outcome": "declined", "evidence": "statement of 3 March, line 12"}
# A valid body for each route that reads one, so that only the object itself can be wrong.
BODIES = {
    "/v1/payments/<payment_id>/capture": {"amount": 1},
    "/v1/payments/<payment_id>/refunds": {"amount": 1},
    "/v1/payments/<payment_id>/resolve": VERDICT,
    "/v1/payments/<payment_id>/capture/resolve": VERDICT,
    "/v1/payments/<payment_id>/void/resolve": VERDICT,
    "/v1/refunds/<refund_id>/resolve": VERDICT,
    "/v1/webhook_endpoints/<endpoint_id>": {"description": "mine now"},
}
# The path has the provider's name, and its signature is the key.
OPEN_ROUTES = {"/v1/webhooks/<provider>", "/docs/static/<path:filename>"}


def test_another_merchants_objects_are_not_found_on_any_route(
    app: Flask, client: FlaskClient, api_key: str, make_key: Callable[..., str], provider: object
) -> None:
    owner = {"Authorization": f"Bearer {api_key}"}
    stranger = {"Authorization": f"Bearer {make_key(uuid4())}"}
    objects = _objects(client, owner)
    calls = [
        (method, rule.rule)
        for rule in app.url_map.iter_rules()
        for method in sorted((rule.methods or set()) - {"HEAD", "OPTIONS"})
        if rule.arguments and rule.rule not in OPEN_ROUTES
    ]

    answers = {}
    for method, rule in calls:
        path = re.sub(r"<(\w+)>", lambda match: objects[match[1]], rule)
        answers[method, rule] = client.open(
            path,
            method=method,
            headers={**stranger, "Idempotency-Key": str(uuid4())},
            json=BODIES.get(rule) if method in ("POST", "PATCH") else None,
        ).status_code

    assert len(answers) >= 14
    assert {call: status for call, status in answers.items() if status != 404} == {}


def test_a_strangers_lists_are_empty(
    client: FlaskClient, api_key: str, make_key: Callable[..., str], provider: object
) -> None:
    _objects(client, {"Authorization": f"Bearer {api_key}"})
    stranger_key = make_key(uuid4())
    stranger = {"Authorization": f"Bearer {stranger_key}"}

    for path in ("/v1/payments", "/v1/events", "/v1/webhook_endpoints"):
        assert client.get(path, headers=stranger).json["data"] == [], path
    keys = client.get("/v1/api_keys", headers=stranger).json["data"]
    assert len(keys) == 1


def _objects(client: FlaskClient, owner: dict[str, str]) -> dict[str, str]:
    """One object of each kind, by the name of its place in a route."""
    headers = {**owner, "Idempotency-Key": str(uuid4())}
    payment = client.post("/v1/payments", json=PAYMENT, headers=headers).json
    refunds = f"/v1/payments/{payment['id']}/refunds"
    headers = {**owner, "Idempotency-Key": str(uuid4())}
    refund = client.post(refunds, json={"amount": 1}, headers=headers).json
    endpoint = client.post(
        "/v1/webhook_endpoints", json={"url": "https://93.184.216.34/hook"}, headers=owner
    ).json
    key = client.post("/v1/api_keys", json={"scopes": ["read"]}, headers=owner).json
    event = client.get("/v1/events", headers=owner).json["data"][0]
    return {
        "payment_id": payment["id"],
        "refund_id": refund["id"],
        "endpoint_id": endpoint["id"],
        "key_id": key["id"],
        "event_id": event["id"],
    }
