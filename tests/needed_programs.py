"""System programs that tests need: pytest deselects a test if its program is missing.

One line at the end of the run lists the missing programs and the command that installs them. With `CI=true` the run fails.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

# The programs that a test can declare, each with its Debian package.
PACKAGES = {
    "chromium": "chromium",
    "prometheus": "prometheus",
    "promtool": "prometheus",
    "alertmanager": "prometheus-alertmanager",
    "amtool": "prometheus-alertmanager",
    "pgbouncer": "pgbouncer",
    "stripe-mock": "npm",
}
LEFT_OUT = "left_out"


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "needs(*programs): deselected if one of them is not installed"
    )
    config.pluginmanager.register(LeftOut(config), "left-out")


def is_there(program: str) -> bool:
    """Whether the program is installed; `make` installs stripe-mock into the virtual environment."""
    if program == "stripe-mock":
        return shutil.which("node") is not None and Path(sys.prefix, "stripe-mock.lock").exists()
    return path_of(program) is not None


def path_of(program: str) -> str | None:
    """The path of the program; /usr/sbin counts too, which is often not on a user's PATH."""
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin"])
    # Debian's name is longer than the upstream name.
    names = (program, f"prometheus-{program}") if program == "alertmanager" else (program,)
    return next((found for name in names if (found := shutil.which(name, path=path))), None)


class LeftOut:
    """Collects the missing programs; workers report them to the controlling process."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._programs: dict[str, int] = {}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        lacking = {item: missing for item in items if (missing := _missing(item))}
        if not lacking:
            return
        for missing in lacking.values():
            for program in missing:
                self._programs[program] = self._programs.get(program, 0) + 1
        self._config.hook.pytest_deselected(items=list(lacking))
        items[:] = [item for item in items if item not in lacking]

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        output = getattr(self._config, "workeroutput", None)
        if output is not None:
            output[LEFT_OUT] = self._programs
        elif self._programs and os.environ.get("CI") == "true" and session.exitstatus == 0:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: object) -> None:
        # Every worker collects all tests, so all reports are equal.
        self._programs |= getattr(node, "workeroutput", {}).get(LEFT_OUT, {})

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self._programs:
            packages = " ".join(sorted({PACKAGES[program] for program in self._programs}))
            terminalreporter.write_line(
                f"not run here: needs {', '.join(sorted(self._programs))}"
                f" (sudo apt-get install --no-install-recommends {packages})"
            )


def _missing(item: pytest.Item) -> list[str]:
    named = {program for mark in item.iter_markers("needs") for program in mark.args}
    unknown = named - PACKAGES.keys()
    if unknown:
        raise pytest.UsageError(f"{item.nodeid} needs {unknown}, of which no package is known.")
    return [program for program in sorted(named) if not is_there(program)]
