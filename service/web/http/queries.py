"""Reads a query string strictly: each parameter known and once, no controls, no card numbers."""

from __future__ import annotations

from typing import TypeVar

from flask import request
from pydantic import BaseModel

from service.errors import ValidationFailed
from service.web.http.bodies import refuse_card_number, refuse_unfit_text, validated

Model = TypeVar("Model", bound=BaseModel)


def read_query(model: type[Model]) -> Model:
    """The query as the model's instance; raises ValidationFailed, CardDataRefused."""
    given = request.args.to_dict(flat=False)
    if any(len(values) > 1 for values in given.values()):
        raise ValidationFailed(
            "A query parameter appears twice.",
            fields=[{"field": "(query)", "reason": "stands twice"}],
        )
    values = {name: texts[0] for name, texts in given.items()}
    for name, text in values.items():
        refuse_unfit_text(text, "query")
        refuse_card_number(f"{name} {text}", "query")
    if "created_gte" in values:
        # A plus sign that was not percent-encoded arrives as a space.
        values["created_gte"] = values["created_gte"].replace(" ", "+")
    return validated(model, values)
