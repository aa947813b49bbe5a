"""Tests of a missing program are deselected, and the run prints the command that installs it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TESTS = """
import pytest

@pytest.mark.needs("chromium", "prometheus")
def test_with_a_browser(): raise AssertionError("it ran")

def test_alone(): pass
"""
LINE = "not run here: needs chromium, prometheus (sudo apt-get install --no-install-recommends chromium prometheus)"


@pytest.mark.parametrize(
    ("workers", "ci", "status"), [("0", "", 0), ("0", "true", 1), ("2", "", 0)]
)
def test_a_missing_program_is_one_line_and_a_failure_in_ci(
    tmp_path: Path, workers: str, ci: str, status: int
) -> None:
    (tmp_path / "test_it.py").write_text(TESTS)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")

    ran = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "xdist",
            "-n",
            workers,
            "-p",
            "tests.needed_programs",
        ],
        cwd=tmp_path,
        env={
            **os.environ,
            "PATH": "/nowhere",
            "PYTHONPATH": str(ROOT),
            "CI": ci,
            # The import of all other plugins costs seconds of processor time.
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        },
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )

    assert LINE in ran.stdout.splitlines()
    assert "1 passed" in ran.stdout
    assert ran.returncode == status
