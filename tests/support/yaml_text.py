"""YAML by libyaml: the parser in Python needs a second of each test worker's processor for our files."""

from __future__ import annotations

from typing import Any

import yaml

_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def load(text: str | bytes) -> Any:
    """The one document of `text`."""
    return yaml.load(text, _Loader)  # noqa: S506 - both are safe loaders


def load_all(text: str | bytes) -> list[Any]:
    return list(yaml.load_all(text, _Loader))
