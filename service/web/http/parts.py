"""The parts of an application: put on it when it is built, read by its views in a request."""

from __future__ import annotations

from typing import TypeVar

from flask import Flask, current_app

Parts = TypeVar("Parts")


def put_parts(app: Flask, parts: object) -> None:
    """Give the application these parts; of each type it has one object."""
    app.extensions[_key(type(parts))] = parts


def parts_of(kind: type[Parts]) -> Parts:
    """The object of this type that the application of the current request was given."""
    parts: Parts = current_app.extensions[_key(kind)]
    return parts


def _key(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"
