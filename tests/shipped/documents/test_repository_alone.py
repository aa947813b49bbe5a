"""The project needs only its repository: no file refers to a path outside."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).parents[3]
# Without git, these folders are not part of the project.
LEFT_BY_RUNS = {"build", "dist", "node_modules", "secrets", "__pycache__"}

# Directories of one machine, and folders beside a checkout. Paths in containers are allowed.
ELSEWHERE = re.compile(
    r"""
    (?<![\w.-]) /(?: work | root | home/[\w.-]+ | Users/[\w.-]+ | mnt | data ) /
    | \.pyenv\b
    | /tmp/[a-z]+/                             # A temporary directory has a name of its own.
    | \.\./shared\b
    | parent \s* / \s* ["']shared["']
    """,
    re.VERBOSE,
)
# The settings of pip and npm on the machine choose the index, not the project.
INDEX_HOST = re.compile(
    r"https?://[\w.-]*(?:pypi|pythonhosted|npmjs|artifactory|nexus)[\w.-]*", re.I
)
UPWARDS = re.compile(r"(?<![\w.])(?:\.\./)+")
PARENTS = re.compile(r"__file__\)(?:\.resolve\(\))?\.parents\[(\d+)\]")


def project_files() -> list[PurePosixPath]:
    """Every file of a clone, and the files that the next commit would add."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    if listed.returncode == 0:
        names = listed.stdout.decode().split("\0")
        return [PurePosixPath(name) for name in names if name and (ROOT / name).is_file()]
    return [
        PurePosixPath(path.relative_to(ROOT))
        for path in ROOT.rglob("*")
        if path.is_file() and not _is_left_by_a_run(path.relative_to(ROOT))
    ]


def _is_left_by_a_run(path: Path) -> bool:
    hidden = any(part.startswith(".") and part != ".ci" for part in path.parts[:-1])
    return hidden or not LEFT_BY_RUNS.isdisjoint(path.parts)


def reaches(path: PurePosixPath, text: str) -> Iterator[str]:
    """The references in `text`, the file at `path`, to paths outside the project."""
    folders = len(path.parts) - 1
    for number, line in enumerate(text.splitlines(), 1):
        found = [match.group() for match in ELSEWHERE.finditer(line)]
        found += [match.group() for match in INDEX_HOST.finditer(line)]
        found += [up.group() for up in UPWARDS.finditer(line) if up.group().count("/") > folders]
        found += [up.group() for up in PARENTS.finditer(line) if int(up.group(1)) > folders]
        yield from (f"{path}:{number}: {reach}" for reach in found)


def test_no_file_reaches_for_what_lies_beside_the_repository() -> None:
    this = PurePosixPath(Path(__file__).relative_to(ROOT))
    found = []
    for path in project_files():
        text = _text(ROOT / path)
        if text is not None and path != this:
            found += reaches(path, text)

    assert found == []


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("tests/shipped/test_x.py", 'SCHEMA = ROOT.parent / "shared" / "x.json"'),
        ("tests/shipped/test_x.py", 'SCHEMA = "../shared/x.json"'),
        ("tests/shipped/test_x.py", "ROOT = Path(__file__).parents[3]"),
        ("tests/x.py", "ROOT = Path(__file__).resolve().parents[2]"),
        ("docs/x.md", "[x](../../x.md)"),
        ("Makefile", "include ../common.mk"),
        ("Makefile", "PYTHON := /root/.pyenv/versions/3.11.7/bin/python"),
        ("deploy/x.sh", "cd /home/me/holdfast"),
        ("x.lock", "--index-url https://pypi.example.com/simple"),
    ],
)
def test_a_reach_is_found(path: str, line: str) -> None:
    assert list(reaches(PurePosixPath(path), line)) != []


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("tests/shipped/test_x.py", "ROOT = Path(__file__).parents[2]"),
        ("docs/runbooks/x.md", "[x](../../README.md)"),
        ("deploy/x.yaml", "- ../grafana/dashboards:/etc/holdfast/dashboards:ro"),
        ("deploy/Dockerfile", "WORKDIR /opt/holdfast"),
        ("docs/x.md", "https://example.com/home/work/x"),
    ],
)
def test_what_stays_inside_is_no_reach(path: str, line: str) -> None:
    assert list(reaches(PurePosixPath(path), line)) == []


def _text(path: Path) -> str | None:
    """The text of the file; None for a picture or a font."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return None
