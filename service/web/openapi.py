"""The OpenAPI 3.1 document, made from the models that check the requests, and a page to read it."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from flask import Blueprint, Flask, Response, current_app, render_template
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from service.web import problems
from service.web.schemas import Problem

View = TypeVar("View", bound=Callable[..., Any])
_REF = "#/components/schemas/{model}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """What the document tells of one call."""

    summary: str
    # status -> (what it means, the body's model or None)
    answers: Mapping[int, tuple[str, type[BaseModel] | None]]
    problems: tuple[str, ...] = ()
    body: type[BaseModel] | None = None
    query: type[BaseModel] | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    required_headers: tuple[str, ...] = ()
    # None: open to everybody.
    scope: str | None = None


def documented(operation: Operation) -> Callable[[View], View]:
    """Put `operation` on a view, for the document; the view itself is not changed."""

    def mark(view: View) -> View:
        view.operation = operation  # type: ignore[attr-defined]
        return view

    return mark


def openapi_blueprint(*, version: str) -> Blueprint:
    """/openapi.json and /docs, for every documented route of the application."""
    blueprint = Blueprint(
        "openapi",
        __name__,
        template_folder="templates",
        static_folder="static/docs",
        static_url_path="/docs/static",
    )

    @functools.cache
    def document() -> dict[str, Any]:
        return build_document(current_app, version=version)

    @blueprint.get("/openapi.json")
    @documented(Operation(summary="This document", answers={200: ("OpenAPI 3.1", None)}))
    def openapi_json() -> Response:
        return Response(json.dumps(document()), content_type="application/json")

    @blueprint.get("/docs")
    @documented(Operation(summary="This document as a page", answers={200: ("HTML", None)}))
    def docs_page() -> Response:
        page = render_template("docs.html", document=document(), codes=problems.CODES)
        answer = Response(page, content_type="text/html; charset=utf-8")
        answer.headers["Content-Security-Policy"] = (
            "default-src 'none'; style-src 'self'; img-src 'self' data:; base-uri 'none'; "
            "form-action 'none'; frame-ancestors 'none'"
        )
        return answer

    return blueprint


def build_document(app: Flask, *, version: str) -> dict[str, Any]:
    """The whole document; every route whose view is `documented` is in it."""
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
    paths: dict[str, dict[str, Any]] = {}
    for path, method, operation in operations:
        paths.setdefault(path, {})[method] = _operation(path, method, operation)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Holdfast",
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
            "securitySchemes": {
                "api_key": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "`Authorization: Bearer hf_test_...` or `hf_live_...`",
                }
            },
        },
    }


def _operation(path: str, method: str, operation: Operation) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "operationId": f"{method}_{path.strip('/').translate(_NAMES)}",
        "summary": operation.summary,
        "parameters": [
            *_path_parameters(path),
            *_query_parameters(operation.query),
            *(
                {
                    "name": name,
                    "in": "header",
                    "required": name in operation.required_headers,
                    "description": tells,
                    "schema": {"type": "string"},
                }
                for name, tells in operation.headers.items()
            ),
        ],
        "responses": {
            str(status): _answer(tells, model, "application/json")
            for status, (tells, model) in sorted(operation.answers.items())
        },
    }
    for code in operation.problems:
        status, title = problems.CODES[code]
        _add_problem(shown["responses"], str(status), f"`{code}`: {title}.")
    if operation.body is not None:
        shown["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": _reference(operation.body)}},
        }
    if operation.scope is not None:
        shown["security"] = [{"api_key": []}]
        shown["description"] = f"Needs the scope `{operation.scope}`."
    return shown


_NAMES = str.maketrans({"/": "_", "{": "", "}": "", ".": "_"})


def _add_problem(responses: dict[str, Any], status: str, tells: str) -> None:
    if status in responses:
        responses[status]["description"] += f" {tells}"
    else:
        responses[status] = _answer(tells, Problem, problems.MEDIA_TYPE)


def _answer(tells: str, model: type[BaseModel] | None, media_type: str) -> dict[str, Any]:
    if model is None:
        return {"description": tells}
    return {"description": tells, "content": {media_type: {"schema": _reference(model)}}}


def _reference(model: type[BaseModel]) -> dict[str, str]:
    return {"$ref": _REF.format(model=model.__name__)}


def _path(rule: str) -> str:
    """Flask's `<payment_id>` as OpenAPI's `{payment_id}`."""
    return rule.replace("<path:", "{").replace("<", "{").replace(">", "}")


def _path_parameters(path: str) -> list[dict[str, Any]]:
    return [
        {"name": part[1:-1], "in": "path", "required": True, "schema": {"type": "string"}}
        for part in path.split("/")
        if part.startswith("{")
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
            "schema": {key: value for key, value in of.items() if key not in ("title", "default")},
        }
        for name, of in schema["properties"].items()
    ]


def _schemas(operations: list[Operation]) -> dict[str, Any]:
    shown: dict[type[BaseModel], None] = {Problem: None}
    for operation in operations:
        answered = [model for _, model in operation.answers.values()]
        for model in (operation.body, *answered):
            if model is not None:
                shown[model] = None
    _, schemas = models_json_schema([(model, "validation") for model in shown], ref_template=_REF)
    definitions: dict[str, Any] = schemas["$defs"]
    return definitions
