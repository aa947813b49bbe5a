"""The answers of a call in the document: bodies, problems, headers, and links."""

from __future__ import annotations

from typing import Any, get_args

from pydantic import BaseModel

from service.web.http import problems
from service.web.http.problem_schemas import (
    Problem,
)
from service.web.openapi.operation import IDEMPOTENCY_KEY, Operation

REF = "#/components/schemas/{model}"

_TEXT = {"type": "string"}
_COUNT = {"type": "integer", "minimum": 0}
_SECONDS = {"type": "integer", "minimum": 1}


def _header(tells: str, schema: dict[str, Any], *, required: bool = True) -> dict[str, Any]:
    return {"description": tells, "required": required, "schema": schema}


# Response headers, by the name that `sends` and the document's references use.
HEADERS_OUT: dict[str, dict[str, Any]] = {
    "X-Request-Id": _header(
        "Yours where it was safe to repeat, else ours; it is in every log line of the request.",
        {**_TEXT, "pattern": "^[A-Za-z0-9._-]{1,64}$"},
    ),
    "Location": _header("Where the object can be read.", {**_TEXT, "pattern": "^/"}),
    "Retry-After": _header("Seconds; sooner is of no use.", _SECONDS),
    "ETag": _header("Names this state of the payment; for If-None-Match.", _TEXT),
    "WWW-Authenticate": _header("How to say who you are.", _TEXT),
    "Idempotent-Replayed": _header(
        "The key was used before: this is what became of it.",
        {**_TEXT, "enum": ["true"]},
        required=False,
    ),
    "RateLimit-Policy": _header("The key's burst and its window (IETF draft).", _TEXT),
    "RateLimit": _header("What is left, and when all of it is again (IETF draft).", _TEXT),
    "RateLimit-Limit": _header("Requests that may be sent at once.", _COUNT),
    "RateLimit-Remaining": _header("Requests left.", _COUNT),
    "RateLimit-Reset": _header("Seconds until none counts any more.", _COUNT),
}
_RATE = tuple(name for name in HEADERS_OUT if name.startswith("RateLimit"))
_BODILESS = frozenset({204, 304})
# A created object can be used in other calls: its kind, and the path parameter for its id.
_LEADS_TO = {
    "payment": "payment_id",
    "refund": "refund_id",
    "webhook_endpoint": "endpoint_id",
    "api_key": "key_id",
}


def answers_of(
    operation: Operation, path: str, called: list[tuple[str, str]]
) -> dict[str, dict[str, Any]]:
    """Every answer of the call by status; `called` are all calls as (operation id, path)."""
    answers: dict[int, dict[str, Any]] = {}
    for status, (tells, model) in sorted(operation.answers.items()):
        answer: dict[str, Any] = {"description": tells}
        if status not in _BODILESS:
            schema = {} if model is None else {"schema": reference(model)}
            answer["content"] = {operation.media_type: schema}
        if model is not None and (links := _links(model, path, called)):
            answer["links"] = links
        answers[status] = answer
    for code in _problems_of(operation, path):
        status, title = problems.CODES[code]
        tells = f"`{code}`: {title}."
        if status in answers:
            answers[status]["description"] += f" {tells}"
        else:
            content = {problems.MEDIA_TYPE: {"schema": reference(Problem)}}
            answers[status] = {"description": tells, "content": content}
    for status, answer in answers.items():
        answer["headers"] = {
            name: {"$ref": f"#/components/headers/{name}"}
            for name in _headers_of(operation, path, status)
        }
    return {str(status): answers[status] for status in sorted(answers)}


def _problems_of(operation: Operation, path: str) -> list[str]:
    """The problem codes of the call, each once: its own, and those of its parts."""
    codes = [*operation.problems, "bad_request", "header_repeated"]
    if operation.scope is not None:
        codes += ["unauthenticated", "forbidden"]
    if _is_counted(operation, path):
        codes.append("rate_limited")
    if path.startswith("/v1/") or operation.scope is not None:
        codes += ["validation_failed", "internal_error"]
        codes += ["db_pool_exhausted", "database_unavailable", "deadline_exceeded"]
    if operation.body is not None:
        codes += ["invalid_json", "body_too_large"]
    if operation.query is not None or (operation.body is not None and operation.scope is not None):
        codes.append("card_data_refused")
    if "{" in path:
        codes.append("not_found")
    if IDEMPOTENCY_KEY in operation.headers:
        codes += ["idempotency_key_missing", "idempotency_key_in_flight", "idempotency_key_reused"]
        codes.append("card_data_refused")
    return [code for code in problems.CODES if code in codes]


def _is_counted(operation: Operation, path: str) -> bool:
    """Whether the call counts for its key's rate limit: the ops plane counts none."""
    return operation.scope is not None and path.startswith("/v1/")


def _headers_of(operation: Operation, path: str, status: int) -> tuple[str, ...]:
    names = ["X-Request-Id", *operation.sends.get(status, ())]
    if _is_counted(operation, path) and (status < 400 or status in (402, 429)):
        names += _RATE
    if IDEMPOTENCY_KEY in operation.headers and (status < 400 or status == 402):
        names.append("Idempotent-Replayed")
    if status == 401:
        names.append("WWW-Authenticate")
    if status in (429, 503) and status not in operation.answers:
        names.append("Retry-After")
    return tuple(names)


def _links(model: type[BaseModel], path: str, called: list[tuple[str, str]]) -> dict[str, Any]:
    """The calls that take the answered object's id; none for a call that took it already."""
    kind = model.model_fields.get("object")
    parameter = _LEADS_TO.get(get_args(kind.annotation)[0]) if kind is not None else None
    place = f"{{{parameter}}}"
    if parameter is None or place in path:
        return {}
    return {
        name: {"operationId": name, "parameters": {parameter: "$response.body#/id"}}
        for name, leads_to in called
        if place in leads_to
    }


def reference(model: type[BaseModel]) -> dict[str, str]:
    """The reference to the model's schema in the document."""
    return {"$ref": REF.format(model=model.__name__)}
