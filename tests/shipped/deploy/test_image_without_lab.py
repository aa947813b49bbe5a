"""The production image has no `service.lab`: every plane starts without it, and refuses its commands."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.stack.running_stack import ROOT

IMPORT_ALL = """
import importlib, json, pkgutil, service
names = [module.name for module in pkgutil.walk_packages(service.__path__, "service.")]
for name in names:
    if name != "service.__main__":
        importlib.import_module(name)
print(json.dumps(names))
"""
DATA_PLANE, OPS_PLANE = "data_plane import create_app", "ops_plane import create_ops_app"
START = """
from service.app.{plane} as create
from service.settings import Settings
app = create(Settings.from_environ())
print(app.test_client().get("/healthz").status_code)
"""


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The image's copy of the source."""
    root = tmp_path_factory.mktemp("image")
    shutil.copytree(
        ROOT / "service", root / "service", ignore=shutil.ignore_patterns("__pycache__")
    )
    shutil.rmtree(root / "service" / "lab")
    return root


def run(image: Path, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    # Isolated from the checkout: only the image's copy of the package can be imported.
    path = {**os.environ, "PYTHONPATH": str(image), "HOLDFAST_HOME": str(image / "home"), **environ}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=image,
        env=path,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_every_module_is_importable_without_the_lab(image: Path) -> None:
    imported = run(image, "-c", IMPORT_ALL)

    assert imported.returncode == 0, imported.stderr
    names = json.loads(imported.stdout)
    assert len(names) > 150
    assert not [name for name in names if name.startswith("service.lab")]


@pytest.mark.parametrize("plane", [DATA_PLANE, OPS_PLANE])
def test_both_planes_start_without_the_lab(image: Path, plane: str, database_url: str) -> None:
    started = run(image, "-c", START.format(plane=plane), DATABASE_URL=database_url)

    assert started.stdout.strip() == "200", started.stderr


def test_simulation_without_the_lab_is_refused_in_a_sentence(
    image: Path, database_url: str
) -> None:
    refused = run(
        image,
        "-c",
        START.format(plane=OPS_PLANE),
        DATABASE_URL=database_url,
        HOLDFAST_SIMULATION_ENABLED="true",
    )

    last = refused.stderr.strip().splitlines()[-1]
    assert last.startswith("service.settings.SettingsError: HOLDFAST_SIMULATION_ENABLED needs")


@pytest.mark.parametrize("command", ["run", "observe", "sandbox", "faultproxy"])
def test_a_command_of_the_lab_is_refused_in_a_sentence(image: Path, command: str) -> None:
    refused = run(image, "-m", "service", command)

    assert refused.returncode == 2
    assert refused.stderr == (
        f"`{command}` needs service.lab, which this installation leaves out: run it from a checkout,"
        " or build the image with --build-arg LAB=1.\n"
    )
