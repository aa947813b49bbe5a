"""The common form of an answer with a document."""

from __future__ import annotations

import json
from typing import Any

from flask import Response


def json_answer(document: dict[str, Any], status: int = 200) -> Response:
    """The answer with a document, in the common form of this API."""
    body = json.dumps(document).encode() + b"\n"
    return Response(body, status, content_type="application/json")
