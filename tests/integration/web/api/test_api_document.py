"""/openapi.json and /docs: every route is in them, and they need nothing from elsewhere."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from flask import Flask
from flask.testing import FlaskClient

from service.settings import Settings
from service.web.http.problems import CODES
from tests.support.stack.running_stack import ROOT


def test_every_route_is_in_the_document(app: Flask, client: FlaskClient) -> None:
    document = client.get("/openapi.json").json

    served = {
        (re.sub(r"<(\w+)>", r"{\1}", rule.rule), method.lower())
        for rule in app.url_map.iter_rules()
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
        if not rule.endpoint.endswith(".static")
    }
    shown = {(path, method) for path, of in document["paths"].items() for method in of}
    assert document["openapi"] == "3.1.0"
    assert shown == served


def test_every_route_of_the_ops_plane_is_in_its_own_document(
    settings: Settings, tmp_path: Path
) -> None:
    # A separate process: this plane's threads run until it ends.
    program = """
import json
from service.app.ops_plane import create_ops_app
from service.settings import Settings
app = create_ops_app(Settings.from_environ())
rules = [(rule.rule, sorted(rule.methods)) for rule in app.url_map.iter_rules()
         if not rule.endpoint.endswith("static")]
ask = app.test_client().get
print(json.dumps([rules, ask("/openapi.json").json, ask("/docs").text]))
"""
    ran = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={
            **os.environ,
            "DATABASE_URL": str(settings.database_url),
            "HOLDFAST_HOME": str(tmp_path),
            "HOLDFAST_SIMULATION_ENABLED": "true",
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    rules, document, page = json.loads(ran.stdout.splitlines()[-1])

    served = {
        (re.sub(r"<(\w+)>", r"{\1}", rule), method.lower())
        for rule, methods in rules
        for method in set(methods) - {"HEAD", "OPTIONS"}
    }
    shown = {(path, method) for path, of in document["paths"].items() for method in of}
    assert shown == served
    assert {("/simulate/{name}", "post"), ("/metrics", "get"), ("/", "get")} <= shown
    assert "curl -s -X DELETE" in page


def test_every_reference_in_the_document_leads_somewhere(client: FlaskClient) -> None:
    document = client.get("/openapi.json")

    named = set(re.findall(r'"#/components/schemas/(\w+)"', document.get_data(as_text=True)))
    assert named <= set(document.json["components"]["schemas"])
    assert {"CreatePayment", "PaymentDocument", "Problem"} <= named


def test_page_explains_every_problem_and_loads_own_files_only(client: FlaskClient) -> None:
    page = client.get("/docs").get_data(as_text=True)

    assert all(f'id="{code}"' in page for code in CODES)
    assert re.findall(r'(?:src|href)="https?:', page) == []
    assert "<script" not in page
    assert "style=" not in page
    (stylesheet,) = re.findall(r'rel="stylesheet" href="([^"]+)"', page)
    with client.get(stylesheet) as answer:
        assert answer.content_type.startswith("text/css")
