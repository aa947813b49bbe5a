"""The entry to every command: its version, its refusals, and a reader that stops early."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from service.version import VERSION


def run(*words: str, **options: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "service", *words],
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options},
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize("flag", ["--version", "-V"])
def test_version_is_that_of_the_package(flag):
    answer = run(flag)

    assert (answer.returncode, answer.stdout) == (0, f"holdfast {VERSION}\n")


def test_an_unknown_command_is_refused_with_the_nearest():
    answer = run("recncile")

    assert answer.returncode == 2
    assert "There is no command 'recncile'. Did you mean 'reconcile'?" in answer.stderr
    assert "Did you mean" not in run("zzzzzz").stderr


@pytest.mark.parametrize("words", [["--help"], ["audit", "--help"], ["--version"]])
def test_a_reader_that_stops_early_causes_no_traceback(words):
    read_end, write_end = os.pipe()
    os.close(read_end)
    try:
        answer = run(*words, stdout=write_end)
    finally:
        os.close(write_end)

    assert answer.stderr == ""
    # argparse ignores an output that it cannot write to.
    assert answer.returncode in (0, 1)
