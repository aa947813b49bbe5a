"""The output of a run: each failure at once, running tests after a silence, the seed at the end."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Run these tests on two workers; return the output."""
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / "conftest.py").write_text(
        "from tests import order_of_work\n"
        "from tests.support.stack import cluster_template\n"
        "order_of_work.SILENT_S = 1.0\n"
        "def pytest_configure(config):\n"
        "    if not hasattr(config, 'workerinput'):\n"
        "        cluster_template.begin_run()\n"
        "        config.add_cleanup(cluster_template.end_run)\n"
    )

    def run(**files: str) -> str:
        for name, text in files.items():
            (tmp_path / f"test_{name}.py").write_text(text)
        options = (
            "-q",
            "-p",
            "xdist",
            "-n",
            "2",
            "--dist",
            "loadfile",
            "-p",
            "tests.order_of_work",
        )
        ran = subprocess.run(
            [sys.executable, "-m", "pytest", *options, "-p", "randomly", "--randomly-seed=7"],
            cwd=tmp_path,
            # The import of all other plugins costs seconds of processor time.
            env={**os.environ, "PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )
        return ran.stdout

    return run


def test_failure_shows_before_the_end_and_the_summary_last(run) -> None:
    said = run(
        quick="import pathlib\ndef test_it():\n    pathlib.Path('begun').touch()\n    assert 1 == 2",
        # A worker may start late: the silence is after the failure.
        slow="import pathlib, time\n"
        "def test_it():\n"
        "    while not pathlib.Path('begun').exists(): time.sleep(0.05)\n"
        "    time.sleep(4)",
    ).splitlines()

    told = said.index("FAILED test_quick.py::test_it (call): assert 1 == 2")
    assert any(line.startswith("still running: test_slow") for line in said[told:])
    assert "The order was random: -p randomly --randomly-seed=7" in said
    assert said[-1].startswith("1 failed, 1 passed")
