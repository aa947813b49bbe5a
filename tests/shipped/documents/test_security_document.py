"""docs/security.md: every test that it names exists."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[3]
DOCUMENT = (ROOT / "docs" / "security.md").read_text()


def test_every_test_that_the_document_names_exists():
    named = set(re.findall(r"`(test_\w+)`", DOCUMENT))
    written = {
        name
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^\s*def (test_\w+)", path.read_text(), re.MULTILINE)
    }

    assert len(named) > 20
    assert named - written == set()


def test_every_file_that_the_document_names_exists():
    named = set(re.findall(r"`(tests/[\w/]+\.py)`", DOCUMENT))

    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []


def test_document_covers_exactly_the_standards_chapters():
    table, _, chapters = DOCUMENT.partition("## The chapters of ASVS 5")

    assert re.findall(r"^\| V(\d+) ", chapters, re.MULTILINE) == [str(n) for n in range(1, 18)]
    assert set(re.findall(r"\bV(\d+)\b", table)) <= {str(n) for n in range(1, 18)}
