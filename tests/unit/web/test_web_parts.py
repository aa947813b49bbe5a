"""Several applications in one process share their blueprints, never their parts."""

from __future__ import annotations

from flask import Flask

from service.web.api import health
from service.web.http.parts import put_parts
from service.web.openapi import document


def plane(title: str, missing: str | None) -> Flask:
    app = Flask(title)
    put_parts(app, document.Description(title=title, version="1", address="http://127.0.0.1:1"))
    put_parts(app, health.Readiness(lambda deadline: missing, is_stopping=lambda: False))
    app.register_blueprint(document.blueprint)
    app.register_blueprint(health.blueprint)
    return app


def test_two_planes_in_one_process_keep_their_own_parts():
    first, second = plane("first", None).test_client(), plane("second", "database").test_client()

    titles = [one.get("/openapi.json").json["info"]["title"] for one in (first, second, first)]
    codes = [one.get("/readyz").status_code for one in (first, second, first)]

    assert titles == ["first", "second", "first"]
    assert codes == [200, 503, 200]
