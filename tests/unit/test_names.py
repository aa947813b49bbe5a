"""Names in the code: one meaning for each class name, short names for tests."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[2]
TEST_NAME_LENGTH_MAX = 60


def names_in(folder: str, *kinds: type[ast.AST]) -> list[str]:
    """The names of all definitions of these kinds below the folder."""
    return [
        node.name
        for path in sorted((ROOT / folder).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, kinds) and isinstance(node, (ast.ClassDef, ast.FunctionDef))
    ]


def test_no_class_name_is_defined_twice_in_the_service() -> None:
    counts = Counter(names_in("service", ast.ClassDef))

    assert [name for name, count in counts.items() if count > 1] == []


def test_names_of_tests_have_at_most_60_characters() -> None:
    tests = [name for name in names_in("tests", ast.FunctionDef) if name.startswith("test_")]

    assert [name for name in tests if len(name) > TEST_NAME_LENGTH_MAX] == []
