"""The OpenAPI 3.1 document, built from the models that check requests, and a page for it."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from typing import Any

from flask import Blueprint, Flask, Response, current_app, render_template
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from service.web.http import problems
from service.web.http.parts import parts_of
from service.web.http.problem_schemas import (
    Problem,
)
from service.web.openapi.examples import command
from service.web.openapi.operation import IDEMPOTENCY_KEY, JSON, TIMEOUT, Operation, documented
from service.web.openapi.responses import HEADERS_OUT, REF, answers_of, reference

# The form of an id in a path; any other value is not found.
_PATH_PARAMETERS: dict[str, dict[str, Any]] = {
    "payment_id": {"type": "string", "pattern": "^pay_[0-9a-f]{32}$"},
    "refund_id": {"type": "string", "pattern": "^ref_[0-9a-f]{32}$"},
    "event_id": {"type": "string", "pattern": "^evt_[0-9a-f]{32}$"},
    "endpoint_id": {"type": "string", "pattern": "^we_[0-9a-f]{32}$"},
    "key_id": {"type": "string", "pattern": "^[0-9A-Za-z]{12}$"},
    "provider": {"type": "string", "enum": ["stripe"]},
    # A drill's kind and the id of one drill, on the ops plane.
    "name": {"type": "string", "maxLength": 40},
    "run_id": {"type": "string", "maxLength": 64},
}


@dataclass(frozen=True)
class Description:
    """The title of a plane's document, and the document of the application in a request."""

    title: str
    version: str
    # Of this plane, for the commands on the page.
    address: str

    @functools.cached_property
    def document(self) -> dict[str, Any]:
        """Built once, from every documented route of the application."""
        return build_document(current_app, title=self.title, version=self.version)


blueprint = Blueprint(
    "openapi",
    __name__,
    template_folder="templates",
    static_folder="static/docs",
    static_url_path="/docs/static",
)


@blueprint.get("/openapi.json")
@documented(Operation(summary="This document", answers={200: ("OpenAPI 3.1", None)}))
def openapi_json() -> Response:
    return Response(json.dumps(parts_of(Description).document), content_type=JSON)


@blueprint.get("/docs")
@documented(
    Operation(
        summary="This document as a page",
        answers={200: ("HTML", None)},
        media_type="text/html",
    )
)
def docs_page() -> Response:
    described = parts_of(Description)
    page = render_template(
        "docs.html",
        document=described.document,
        codes=problems.CODES,
        command=command,
        address=described.address,
    )
    answer = Response(page, content_type="text/html; charset=utf-8")
    answer.headers["Content-Security-Policy"] = (
        "default-src 'none'; style-src 'self'; img-src 'self' data:; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'"
    )
    return answer


def build_document(app: Flask, *, title: str, version: str) -> dict[str, Any]:
    """The whole document, with every route that has a `documented` view."""
    routes = [
        (_path(rule.rule), method.lower(), app.view_functions[rule.endpoint])
        for rule in app.url_map.iter_rules()
        for method in sorted((rule.methods or set()) - {"HEAD", "OPTIONS"})
    ]
    operations = [
        (path, method, view.operation)
        for path, method, view in sorted(routes, key=lambda route: route[:2])
        if hasattr(view, "operation")
    ]
    called = [(operation_id(method, path), path) for path, method, _ in operations]
    paths: dict[str, dict[str, Any]] = {}
    for path, method, operation in operations:
        paths.setdefault(path, {})[method] = _operation(path, method, operation, called)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": title,
            "version": version,
            "description": (
                "5xx, 429 and 409 in flight: this call was not accepted, the same key again is "
                "safe. 202: durably accepted, we own it, do not pay elsewhere. 200, 201, 402: "
                "final, or waiting for the client."
            ),
        },
        "paths": paths,
        "components": {
            "schemas": _schemas([operation for _, _, operation in operations]),
            "headers": HEADERS_OUT,
            "securitySchemes": {
                "api_key": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "`Authorization: Bearer hf_test_...` or `hf_live_...`",
                }
            },
        },
    }


def operation_id(method: str, path: str) -> str:
    """The call's name in the document: `get_v1_payments_payment_id`."""
    return f"{method}_{path.strip('/').translate(_NAMES)}"


_NAMES = str.maketrans({"/": "_", "{": "", "}": "", ".": "_"})


def _operation(
    path: str, method: str, operation: Operation, called: list[tuple[str, str]]
) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "operationId": operation_id(method, path),
        "summary": operation.summary,
        "parameters": [
            *_path_parameters(path),
            *_query_parameters(operation.query),
            *_header_parameters(path, operation),
        ],
        "responses": answers_of(operation, path, called),
    }
    if operation.body is not None:
        content: dict[str, Any] = {"schema": reference(operation.body)}
        if operation.example is not None:
            content["example"] = operation.example
        shown["requestBody"] = {"required": True, "content": {JSON: content}}
    if operation.scope is not None:
        shown["security"] = [{"api_key": []}]
        shown["description"] = f"Needs the scope `{operation.scope}`."
    return shown


def _path(rule: str) -> str:
    """Flask's `<payment_id>` as OpenAPI's `{payment_id}`."""
    return rule.replace("<path:", "{").replace("<", "{").replace(">", "}")


def _path_parameters(path: str) -> list[dict[str, Any]]:
    names = [part[1:-1] for part in path.split("/") if part.startswith("{")]
    return [
        {"name": name, "in": "path", "required": True, "schema": _PATH_PARAMETERS[name]}
        for name in names
    ]


def _query_parameters(model: type[BaseModel] | None) -> list[dict[str, Any]]:
    if model is None:
        return []
    schema = model.model_json_schema()
    return [
        {
            "name": name,
            "in": "query",
            "required": False,
            "schema": _given(of),
        }
        for name, of in schema["properties"].items()
    ]


def _given(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema of a query parameter, which is absent rather than null."""
    kept = {key: value for key, value in schema.items() if key not in ("title", "default")}
    some = [one for one in kept.pop("anyOf", []) if one != {"type": "null"}]
    return {**kept, **some[0]} if some else kept


def _header_parameters(path: str, operation: Operation) -> list[dict[str, Any]]:
    # Every call of the contract reads its caller's timeout.
    timeout = (TIMEOUT,) if path.startswith("/v1/") else ()
    return [
        {
            "name": header.name,
            "in": "header",
            "required": header.required,
            "description": header.tells,
            "schema": dict(header.schema),
            **({"example": _example_key(path)} if header is IDEMPOTENCY_KEY else {}),
        }
        for header in (*operation.headers, *timeout)
    ]


def _example_key(path: str) -> str:
    """An example key for each call: all calls of a merchant share one set of keys."""
    return f"{path.rpartition('/')[2]}-123"


def _schemas(operations: list[Operation]) -> dict[str, Any]:
    shown: dict[type[BaseModel], None] = {Problem: None}
    for operation in operations:
        answered = [model for _, model in operation.answers.values()]
        for model in (operation.body, *answered):
            if model is not None:
                shown[model] = None
    _, schemas = models_json_schema([(model, "validation") for model in shown], ref_template=REF)
    definitions: dict[str, Any] = schemas["$defs"]
    return definitions
