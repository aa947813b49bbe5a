"""Prints rows as aligned columns for people, or as JSON for programs."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from typing import Any

_GAP = "  "


def print_rows(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """Print the columns under their names; on a terminal no line exceeds its width."""
    texts = [list(columns), *([_text(row.get(name)) for name in columns] for row in rows)]
    widths = [max(len(line[n]) for line in texts) for n in range(len(columns))]
    # Piped output is never cut.
    most = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    for line in texts:
        padded = (text.ljust(width) for text, width in zip(line, widths, strict=True))
        print(_GAP.join(padded).rstrip()[:most])


def print_fields(row: Mapping[str, Any]) -> None:
    """One object, one field a line."""
    width = max(len(name) for name in row)
    for name, value in row.items():
        print(f"{name.ljust(width)}{_GAP}{_text(value)}".rstrip())


def print_json(document: Any) -> None:
    """One JSON document on one line."""
    print(json.dumps(document), flush=True)


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return printable(",".join(value))
    if isinstance(value, dict | list):
        return json.dumps(value)
    return printable(str(value))


def printable(text: str) -> str:
    """The text for a terminal: a merchant's words must not move the cursor of their reader."""
    return "".join(c if c.isprintable() else "?" for c in text)
