"""`python -m service run`: its output, its refusals, and the end of all its processes."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.processes.process_family import family, parent, read, runs
from tests.support.stack.running_stack import ROOT, running_stack, wait_for

# The smallest configuration: these tests do not depend on its numbers.
SMALL = {"HOLDFAST_WEB_WORKERS": "1", "HOLDFAST_WEB_THREADS": "4", "HOLDFAST_DB_POOL_SIZE": "4"}


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    """One home for all runs of this file, in a path with a space."""
    outer = Path(tempfile.mkdtemp(prefix="holdfast-test-"))
    outer.chmod(0o711)
    yield outer / "local run"
    shutil.rmtree(outer)


@pytest.fixture(scope="module")
def paid_before() -> list[str]:
    """Payments of earlier runs in this home, which each later run must still have."""
    return []


@pytest.mark.parametrize(
    "part",
    [
        *("supervisor", "data_plane", "postgres"),
        # The supervisor watches all parts in one list.
        *(
            pytest.param(part, marks=pytest.mark.long)
            for part in ("ops_plane", "reconciler", "sandbox")
        ),
    ],
)
def test_kill_of_any_part_leaves_no_process_and_loses_no_payment(home, paid_before, part):
    with running_stack(home, first_start=True, **SMALL) as local_stack:
        known = [local_stack.get(f"/v1/payments/{payment}").json() for payment in paid_before]
        paid_before.append(local_stack.pay().json()["id"])
        everyone = family(local_stack.process.pid)

        os.kill(local_stack.pids[part], signal.SIGKILL)

        wait_for(lambda: not any(map(runs, everyone)), timeout_s=30)
        assert len(everyone) > 12
        assert [payment["status"] for payment in known] == ["succeeded"] * len(known)
        if part != "supervisor":
            assert local_stack.process.wait(60) == 1
            said = (home / "run.out").read_text()
            assert f"The {part.replace('_', ' ')} ended unexpectedly" in said


def test_after_a_kill_of_a_keeper_nothing_runs_either(home):
    with running_stack(home, first_start=True, **SMALL) as local_stack:
        everyone = family(local_stack.process.pid)
        manager_pid = parent(local_stack.pids["data_plane"])
        assert manager_pid in everyone

        os.kill(manager_pid, signal.SIGKILL)

        wait_for(lambda: not any(map(runs, everyone)), timeout_s=30)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stop_signal_stops_all_parts_with_exit_code_0(home, number):
    with running_stack(home, first_start=True, **SMALL) as local_stack:
        everyone = family(local_stack.process.pid)

        local_stack.process.send_signal(number)

        assert local_stack.process.wait(60) == 0
        assert not any(map(runs, everyone))
        assert not (home / "run.json").exists()


def test_a_run_tells_how_to_pay_and_keeps_its_secrets(home):
    """One run for all that changes nothing: a start costs seconds of processor time."""
    with running_stack(home, first_start=True, **SMALL) as local_stack:
        _the_pasted_command_pays((home / "run.out").read_text(), local_stack.ops_url)
        _no_secret_is_on_a_command_line_or_open_to_others(home, family(local_stack.process.pid))
        _a_second_run_is_refused_at_once(home)


def _the_pasted_command_pays(said: str, ops_url: str) -> None:
    command = re.search(r"^  curl (.+\n)+?.+'$", said, re.MULTILINE)
    assert command
    pasted = subprocess.run(["sh", "-c", command[0]], capture_output=True, text=True, check=False)

    assert pasted.stdout.startswith("HTTP/1.1 201")
    assert ops_url in said


def _no_secret_is_on_a_command_line_or_open_to_others(home: Path, everyone: list[int]) -> None:
    keys = json.loads((home / "keys.json").read_text()).values()
    command_lines = [read(f"/proc/{pid}/cmdline") for pid in everyone]
    modes = [stat.S_IMODE((home / name).stat().st_mode) for name in ("keys.json", "run.json")]

    assert len(keys) == 2
    assert not [line for line in command_lines if any(key in line for key in keys)]
    assert modes == [0o600, 0o600]


def _a_second_run_is_refused_at_once(home: Path) -> None:
    second = _run_until_it_ends({"HOLDFAST_HOME": str(home)})

    assert second.returncode == 2
    assert "already running" in second.stderr
    assert "HOLDFAST_HOME" in second.stderr
    assert (home / "run.json").exists(), "it belongs to the first run"


def test_own_database_and_provider_replace_the_local_ones(home, database_url, owner_url, sandbox):
    given = {
        "DATABASE_URL": database_url,
        "MIGRATE_DATABASE_URL": owner_url,
        "STRIPE_API_BASE": sandbox.url,
        "STRIPE_API_KEY": "sk_test_x",
        "HOLDFAST_PROVIDER_CA_FILE": str(sandbox.ca_file),
    }
    with running_stack(home.with_name("given"), **SMALL, **given) as local_stack:
        assert local_stack.pay().status_code == 201
        assert not local_stack.pids.keys() & {"postgres", "sandbox"}


@pytest.mark.parametrize("setting", ["HOLDFAST_BIND", "HOLDFAST_OPS_BIND"])
def test_used_port_is_reported_with_its_setting_and_listener(tmp_path, setting):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        bind = f"127.0.0.1:{listener.getsockname()[1]}"
        refused = _run_until_it_ends({"HOLDFAST_HOME": str(tmp_path), setting: bind})

    assert refused.returncode == 2
    assert refused.stderr.count("\n") == 1
    assert setting in refused.stderr
    assert f"(process {os.getpid()}) listens there" in refused.stderr


def test_too_many_connections_are_refused_with_the_numbers(home):
    refused = _run_until_it_ends({"HOLDFAST_HOME": str(home), "HOLDFAST_DB_POOL_SIZE": "40"})

    assert refused.returncode == 2
    assert "2 workers x 40 connections" in refused.stderr
    assert "HOLDFAST_DB_POOL_SIZE" in refused.stderr


@pytest.mark.parametrize(
    ("setting", "text"),
    [
        ("DATABASE_URL", "postgresql://nobody@127.0.0.1:1/nowhere"),
        ("HOLDFAST_BOOTSTRAP_API_KEY", "hunter2"),
        ("HOLDFAST_ENV", "production"),
        ("HOLDFAST_PROVIDER", "stripe_charges"),
    ],
)
def test_what_cannot_be_started_is_said_without_a_traceback(home, setting, text):
    refused = _run_until_it_ends({"HOLDFAST_HOME": str(home), setting: text})

    assert refused.returncode == 2
    assert refused.stderr
    assert "Traceback" not in refused.stderr
    assert "hunter2" not in refused.stderr


def test_sandbox_is_not_started_for_an_unsupported_adapter(home):
    charges = {"HOLDFAST_PROVIDER": "stripe_charges", "HOLDFAST_PROVIDER_FLOW": "one_shot"}

    refused = _run_until_it_ends({"HOLDFAST_HOME": str(home), **charges})

    assert refused.returncode == 2
    assert "STRIPE_API_BASE" in refused.stderr


def _run_until_it_ends(settings: dict[str, str]) -> subprocess.CompletedProcess[str]:
    free = {"HOLDFAST_BIND": "127.0.0.1:0", "HOLDFAST_OPS_BIND": "127.0.0.1:0"}
    return subprocess.run(
        [sys.executable, "-m", "service", "run"],
        cwd=ROOT,
        env=os.environ | free | settings,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
