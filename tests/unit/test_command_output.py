"""The output of commands for people: a stored text cannot act on the terminal of its reader."""

from __future__ import annotations

import pytest

from service.cli.events import line_of
from service.cli.table import print_fields, print_rows

# CSI as one character, a line's end of Unicode, and one that turns the reading direction.
ACTING = ["\x9b2J", "\u2028", "\u202e", "\x85"]


@pytest.mark.parametrize("text", ACTING)
def test_event_is_one_harmless_line(text):
    event = {
        "created_at": "2026-12-01T00:00:00Z",
        "payment_id": None,
        "type": "payment.resolved",
        "detail": {"reason": f"seen{text}there"},
    }

    assert line_of(event).isprintable()
    assert "reason=seen?" in line_of(event)


@pytest.mark.parametrize("text", ACTING)
def test_tables_hold_no_acting_characters(capsys, text):
    print_rows([{"a": text, "b": [text, "x"]}], ("a", "b"))
    print_fields({"a": text, "b": [text]})

    assert all(line.isprintable() for line in capsys.readouterr().out.split("\n"))
