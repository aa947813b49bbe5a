"""An import inside a function has a reason, which a comment before it gives."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]


def unexplained(source: str) -> Iterator[int]:
    """The lines of imports inside functions whose group has no comment before it."""
    lines = source.splitlines()
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.FunctionDef | ast.With | ast.Try):
            continue
        before: ast.stmt | None = None
        for statement in node.body:
            if isinstance(statement, ast.Import | ast.ImportFrom):
                is_first = not isinstance(before, ast.Import | ast.ImportFrom)
                if is_first and not lines[statement.lineno - 2].strip().startswith("#"):
                    yield statement.lineno
            before = statement


def test_an_import_without_a_comment_is_found() -> None:
    assert list(unexplained("def f():\n    import a\n    import b\n")) == [2]
    assert list(unexplained("def f():\n    # A cycle.\n    import a\n    import b\n")) == []


def test_imports_inside_functions_give_their_reason() -> None:
    paths = sorted((ROOT / "service").rglob("*.py"))

    found = {
        f"{path.relative_to(ROOT)}:{line}"
        for path in paths
        for line in unexplained(path.read_text(encoding="utf-8"))
    }

    assert found == set()
