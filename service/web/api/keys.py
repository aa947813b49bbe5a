"""API keys over REST: created, listed and revoked by keys with the scope `operator`."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from flask import Blueprint, Response
from pydantic import BaseModel, ConfigDict, Field

from service.errors import Forbidden, NotFound, ValidationFailed, WrongState
from service.payments.merchants import ALL_SCOPES, PLATFORM, SCOPES, ApiKey
from service.web.api.fields import PLAIN, Moment, shown_time
from service.web.api.plane import data_plane
from service.web.http.answers import json_answer
from service.web.http.bodies import parse_object, read_body, validated
from service.web.http.request_scope import request_deadline
from service.web.openapi.operation import Operation, documented

log = logging.getLogger(__name__)

Scope = Literal["payments", "refunds", "read", "operator"]
# Scopes over REST; `platform` acts on the whole instance and only the command line grants it.
HeldScope = Literal["payments", "refunds", "read", "operator", "platform"]


class CreateKey(BaseModel):
    """A key to create, for the same merchant and mode as the calling key."""

    model_config = ConfigDict(strict=True, extra="forbid", hide_input_in_errors=True)

    scopes: Annotated[
        list[Scope],
        Field(
            min_length=1,
            max_length=len(SCOPES),
            description="Only scopes that the calling key has.",
        ),
    ]
    label: Annotated[str | None, Field(min_length=1, max_length=100, pattern=PLAIN)] = None
    expires_at: Moment | None = None


class KeyDocument(BaseModel):
    """A key without its secret, of which only a hash is stored."""

    model_config = ConfigDict(extra="forbid")

    id: str
    object: Literal["api_key"]
    mode: Literal["test", "live"]
    scopes: list[HeldScope]
    label: str | None
    status: Literal["live", "revoked", "expired"]
    created_at: datetime
    last_used_at: Annotated[datetime | None, Field(description="To the minute.")]
    expires_at: datetime | None
    revoked_at: datetime | None


class KeyWithSecret(KeyDocument):
    """The key itself, which is shown only once."""

    key: str


class KeyList(BaseModel):
    """The newest 100 keys of the merchant."""

    data: list[KeyDocument]


blueprint = Blueprint("api_keys", __name__)


@blueprint.post("/v1/api_keys")
@documented(
    Operation(
        summary="Create an API key",
        scope="operator",
        body=CreateKey,
        answers={201: ("Created; the key is shown only once", KeyWithSecret)},
        example={"scopes": ["payments", "read"], "label": "shop, new"},
        problems=("wrong_state",),
    )
)
def create_key() -> Response:
    plane, deadline = data_plane(), request_deadline()
    caller = plane.authenticate("operator", deadline)
    asked = validated(CreateKey, parse_object(read_body()))
    if not caller.scopes.issuperset(asked.scopes):
        raise Forbidden("A key cannot create a key with scopes that it lacks.")
    if asked.expires_at is not None and asked.expires_at <= datetime.now(UTC):
        raise ValidationFailed(
            "Refused: expires_at.", fields=[{"field": "expires_at", "reason": "is past"}]
        )
    key, api_key = plane.keys.create(
        caller.merchant_id,
        deadline,
        mode="live" if caller.mode == "live" else "test",
        scopes=sorted(set(asked.scopes)),
        label=asked.label,
        expires_at=asked.expires_at,
        actor=caller.actor(),
    )
    log.warning("api_key.created", extra={"key_id": key.key_id, "by": caller.key_id})
    return json_answer({**present_key(key), "key": api_key}, 201)


@blueprint.get("/v1/api_keys")
@documented(
    Operation(
        summary="List API keys, with the time of their last use",
        scope="operator",
        answers={200: ("The newest 100, with revoked ones", KeyList)},
    )
)
def list_keys() -> Response:
    plane, deadline = data_plane(), request_deadline()
    caller = plane.authenticate("operator", deadline)
    found = plane.keys.of_merchant(caller.merchant_id, deadline)
    return json_answer({"data": [present_key(key) for key in found]})


@blueprint.delete("/v1/api_keys/<key_id>")
@documented(
    Operation(
        summary="Revoke an API key; it stops working within five seconds",
        scope="operator",
        answers={204: ("Revoked permanently", None)},
        problems=("wrong_state",),
    )
)
def revoke_key(key_id: str) -> Response:
    plane, deadline = data_plane(), request_deadline()
    caller = plane.authenticate("operator", deadline)
    if key_id == caller.key_id:
        # A key cannot revoke itself: a merchant that revokes the last key would be locked out.
        raise WrongState("A key cannot revoke itself: use another one.")
    if not (key_id.isascii() and key_id.isalnum()):
        raise NotFound("There is no such live API key.")
    # A merchant's operator must not revoke the keys of the platform's operators.
    found = plane.keys.find(key_id, deadline)
    is_own = found is not None and found.merchant_id == caller.merchant_id
    if found is not None and is_own and not caller.scopes.issuperset(found.scopes & {PLATFORM}):
        raise Forbidden("A key without the scope 'platform' cannot revoke one that has it.")
    if not plane.keys.revoke(caller.merchant_id, key_id, deadline, actor=caller.actor()):
        raise NotFound("There is no such live API key.")
    log.warning("api_key.revoked", extra={"key_id": key_id, "by": caller.key_id})
    return Response(status=204)


def present_key(key: ApiKey) -> dict[str, Any]:
    """The key in the form of KeyDocument."""
    ended = "revoked" if key.revoked_at is not None else "expired"
    return {
        "id": key.key_id,
        "object": "api_key",
        "mode": key.mode,
        "scopes": sorted(key.scopes, key=ALL_SCOPES.index),
        "label": key.label,
        "status": "live" if key.is_live else ended,
        "created_at": shown_time(key.created_at),
        "last_used_at": shown_time(key.last_used_at),
        "expires_at": shown_time(key.expires_at),
        "revoked_at": shown_time(key.revoked_at),
    }
