"""The titles of the problems that clients without this contract see too."""

from __future__ import annotations

import pytest
from flask import Flask

from service.web.http import request_scope
from service.web.http.problems import register_problems


@pytest.mark.parametrize(
    ("method", "path", "status", "title"),
    [
        ("GET", "/elsewhere", 404, "Not found"),
        ("GET", "/fails", 405, "Method not allowed"),
        ("POST", "/fails", 500, "Internal error"),
    ],
)
def test_common_problems_have_plain_titles(method: str, path: str, status: int, title: str) -> None:
    app = Flask("with problems")
    request_scope.install(app, request_timeout_s=8)
    register_problems(app)

    def fail() -> None:
        raise RuntimeError

    app.add_url_rule("/fails", view_func=fail, methods=["POST"])

    answer = app.test_client().open(path, method=method)

    assert answer.json is not None
    assert (answer.status_code, answer.json["title"]) == (status, title)
