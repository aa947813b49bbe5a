"""/openapi.json and /docs: every route is in them, and they need nothing from elsewhere."""

from __future__ import annotations

import re

from flask import Flask
from flask.testing import FlaskClient

from service.web.problems import CODES


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


def test_every_reference_in_the_document_leads_somewhere(client: FlaskClient) -> None:
    document = client.get("/openapi.json")

    named = set(re.findall(r'"#/components/schemas/(\w+)"', document.get_data(as_text=True)))
    assert named <= set(document.json["components"]["schemas"])
    assert {"CreatePayment", "PaymentDocument", "Problem"} <= named


def test_the_page_explains_every_problem_and_loads_only_from_here(client: FlaskClient) -> None:
    page = client.get("/docs").get_data(as_text=True)

    assert all(f'id="{code}"' in page for code in CODES)
    assert re.findall(r'(?:src|href)="https?:', page) == []
    assert "<script" not in page
    assert "style=" not in page
    (stylesheet,) = re.findall(r'rel="stylesheet" href="([^"]+)"', page)
    with client.get(stylesheet) as answer:
        assert answer.content_type.startswith("text/css")
