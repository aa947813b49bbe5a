"""A merchant's webhook endpoints over REST: addresses, secrets, redelivery."""

from __future__ import annotations

from uuid import UUID

from flask import Blueprint, Response

from service.errors import NotFound, ValidationFailed, WrongState
from service.ids import parse_id
from service.payments.events.endpoints import Endpoint, endpoint_id_text
from service.web.api.endpoint_schemas import (
    ChangeEndpoint,
    CreateEndpoint,
    EndpointDocument,
    EndpointList,
    EndpointWithSecret,
    Redelivery,
    present_endpoint,
)
from service.web.api.plane import DataPlane, data_plane
from service.web.http.answers import json_answer
from service.web.http.bodies import parse_object, read_body, validated
from service.web.http.request_scope import request_deadline
from service.web.openapi.operation import Operation, documented

blueprint = Blueprint("webhook_endpoints", __name__)


@blueprint.post("/v1/webhook_endpoints")
@documented(
    Operation(
        summary="Create a webhook endpoint",
        scope="operator",
        body=CreateEndpoint,
        answers={201: ("Made; the secret is shown this once", EndpointWithSecret)},
        example={
            "url": "https://shop.example/webhooks",
            "event_types": ["payment.succeeded", "payment.declined"],
        },
        sends={201: ("Location",)},
        problems=("wrong_state",),
    )
)
def create_endpoint() -> Response:
    plane, deadline = data_plane(), request_deadline()
    caller = plane.authenticate("operator", deadline)
    asked = validated(CreateEndpoint, parse_object(read_body()))
    _check_address(plane, asked.url)
    endpoint, secret = plane.endpoints.create(
        caller.merchant_id,
        deadline,
        url=asked.url,
        event_types=asked.event_types,
        description=asked.description,
        actor=caller.actor(),
    )
    answer = json_answer({**present_endpoint(endpoint), "secret": secret}, 201)
    answer.headers["Location"] = _path(endpoint)
    return answer


@blueprint.get("/v1/webhook_endpoints")
@documented(
    Operation(
        summary="List webhook endpoints",
        scope="read",
        answers={200: ("All of them, oldest first", EndpointList)},
    )
)
def list_endpoints() -> Response:
    plane, deadline = data_plane(), request_deadline()
    caller = plane.authenticate("read", deadline)
    found = plane.endpoints.of_merchant(caller.merchant_id, deadline)
    return json_answer({"data": [present_endpoint(endpoint) for endpoint in found]})


@blueprint.get("/v1/webhook_endpoints/<endpoint_id>")
@documented(
    Operation(
        summary="Read a webhook endpoint",
        scope="read",
        answers={200: ("The endpoint as it stands", EndpointDocument)},
    )
)
def get_endpoint(endpoint_id: str) -> Response:
    plane, deadline = data_plane(), request_deadline()
    caller = plane.authenticate("read", deadline)
    found = plane.endpoints.get(caller.merchant_id, _parse(endpoint_id), deadline)
    return json_answer(present_endpoint(_found(found)))


@blueprint.patch("/v1/webhook_endpoints/<endpoint_id>")
@documented(
    Operation(
        summary="Change, pause or enable a webhook endpoint",
        scope="operator",
        body=ChangeEndpoint,
        answers={200: ("The endpoint as it now stands", EndpointDocument)},
        example={"status": "paused"},
    )
)
def change_endpoint(endpoint_id: str) -> Response:
    plane, deadline = data_plane(), request_deadline()
    caller = plane.authenticate("operator", deadline)
    asked = validated(ChangeEndpoint, parse_object(read_body()))
    _check_address(plane, asked.url)
    changed = plane.endpoints.change(
        caller.merchant_id,
        _parse(endpoint_id),
        deadline,
        url=asked.url,
        event_types=asked.event_types,
        description=asked.description,
        status=asked.status,
        actor=caller.actor(),
    )
    return json_answer(present_endpoint(_found(changed)))


@blueprint.delete("/v1/webhook_endpoints/<endpoint_id>")
@documented(
    Operation(
        summary="Delete a webhook endpoint, with its pending deliveries",
        scope="operator",
        answers={204: ("It is gone", None)},
    )
)
def delete_endpoint(endpoint_id: str) -> Response:
    plane, deadline = data_plane(), request_deadline()
    caller = plane.authenticate("operator", deadline)
    identifier = _parse(endpoint_id)
    if not plane.endpoints.delete(caller.merchant_id, identifier, deadline, actor=caller.actor()):
        raise _no_such_endpoint()
    return Response(status=204)


@blueprint.post("/v1/webhook_endpoints/<endpoint_id>/rotate_secret")
@documented(
    Operation(
        summary="Replace an endpoint's secret; for three days both secrets sign",
        scope="operator",
        answers={200: ("The new secret, shown this once", EndpointWithSecret)},
    )
)
def rotate_secret(endpoint_id: str) -> Response:
    plane, deadline = data_plane(), request_deadline()
    caller = plane.authenticate("operator", deadline)
    identifier = _parse(endpoint_id)
    rotated = plane.endpoints.rotate(caller.merchant_id, identifier, deadline, actor=caller.actor())
    if rotated is None:
        raise _no_such_endpoint()
    return json_answer({**present_endpoint(rotated[0]), "secret": rotated[1]})


@blueprint.post("/v1/events/<event_id>/redeliver")
@documented(
    Operation(
        summary="Deliver an event to its endpoints again",
        scope="operator",
        answers={202: ("It is sent again, with the same webhook-id", Redelivery)},
        problems=("wrong_state",),
    )
)
def redeliver_event(event_id: str) -> Response:
    plane, deadline = data_plane(), request_deadline()
    caller = plane.authenticate("operator", deadline)
    identifier = parse_id(event_id, "evt_")
    again = (
        plane.endpoints.redeliver(caller.merchant_id, identifier, deadline, actor=caller.actor())
        if identifier
        else None
    )
    if again is None:
        raise NotFound("There is no such event.")
    type_, told = again
    if not told:
        raise WrongState("No enabled endpoint hears of events of this type.")
    return json_answer(
        {
            "event_id": event_id,
            "type": type_,
            "endpoints": [endpoint_id_text(endpoint) for endpoint in told],
        },
        202,
    )


def _check_address(plane: DataPlane, url: str | None) -> None:
    reason = None if url is None else plane.refusal_of(url)
    if reason is not None:
        raise ValidationFailed("Refused: url.", fields=[{"field": "url", "reason": reason}])


def _path(endpoint: Endpoint) -> str:
    return f"/v1/webhook_endpoints/{endpoint_id_text(endpoint.endpoint_id)}"


def _parse(text: str) -> UUID:
    endpoint_id = parse_id(text, "we_")
    if endpoint_id is None:
        raise _no_such_endpoint()
    return endpoint_id


def _found(endpoint: Endpoint | None) -> Endpoint:
    if endpoint is None:
        raise _no_such_endpoint()
    return endpoint


def _no_such_endpoint() -> NotFound:
    return NotFound("There is no such webhook endpoint.")
