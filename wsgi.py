"""gunicorn's entry points: `wsgi:app` is the data plane, `wsgi:ops` the ops plane."""

from __future__ import annotations

from flask import Flask


def __getattr__(name: str) -> Flask:
    """Build only the named plane, in the worker and so after the fork."""
    from service.settings import Settings

    if name == "app":
        from service.app.data_plane import create_app

        return create_app(Settings.from_environ())
    if name == "ops":
        from service.app.ops_plane import create_ops_app

        return create_ops_app(Settings.from_environ())
    raise AttributeError(f"module 'wsgi' has no attribute {name!r}")
