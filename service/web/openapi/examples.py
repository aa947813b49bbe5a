"""Each call of the document as a shell command."""

from __future__ import annotations

import json
from typing import Any

from service.web.openapi.operation import JSON


def command(path: str, method: str, call: dict[str, Any]) -> str:
    """`call` as curl, with $HOLDFAST_URL, $HOLDFAST_API_KEY and ids like $PAYMENT_ID to be set."""
    for parameter in call["parameters"]:
        if parameter["in"] == "path":
            name = parameter["name"]
            path = path.replace(f"{{{name}}}", f"${name.upper()}")
    verb = "" if method == ("post" if "requestBody" in call else "get") else f"-X {method.upper()} "
    parts = [f'curl -s {verb}"$HOLDFAST_URL{path}"']
    if "security" in call:
        parts.append('-H "Authorization: Bearer $HOLDFAST_API_KEY"')
    parts += [
        f'-H "{parameter["name"]}: {parameter["example"]}"'
        for parameter in call["parameters"]
        if parameter["in"] == "header" and "example" in parameter
    ]
    if "requestBody" in call:
        example = json.dumps(call["requestBody"]["content"][JSON]["example"])
        parts += [f'-H "Content-Type: {JSON}"', f"-d '{example}'"]
    return " \\\n  ".join(parts)
