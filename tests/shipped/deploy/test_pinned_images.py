"""Images by digest: no manifest has a floating tag, and the release step finds all images."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.manifests import ROOT

DEPLOY = ROOT / "deploy"
OWN = f"registry.example.com/holdfast@sha256:{'c' * 64}"
# A third-party program queries the registry: this one gives the same answers.
CRANE = f"#!/bin/sh\necho sha256:{'a' * 64}\n"


def pin(deploy: Path, *words: str, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(DEPLOY / "pin_images.py"), "--deploy", str(deploy), *words],
        env={"PATH": str(path) if path else "/nonexistent"},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.fixture
def deploy(tmp_path: Path) -> Path:
    """A copy of our manifests, without the digests of a release."""
    copy = tmp_path / "deploy"
    shutil.copytree(DEPLOY, copy, ignore=shutil.ignore_patterns("__pycache__"))
    for path in copy.rglob("*"):
        if path.is_file() and path.suffix != ".py":
            text = path.read_text()
            path.write_text(
                re.sub(r"\n    digest: \S+|@sha256:[0-9a-f]{64}", "", text), encoding="utf-8"
            )
    return copy


@pytest.fixture
def registry(tmp_path: Path) -> Path:
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "crane").write_text(CRANE)
    (programs / "crane").chmod(0o755)
    return programs


def test_no_image_is_left_without_a_digest(deploy, registry):
    assert pin(deploy, "--check").returncode == 1

    pinned = pin(deploy, "--own", OWN, path=registry)

    assert (pinned.returncode, pinned.stderr) == (0, "")
    assert pin(deploy, "--check").returncode == 0
    # A second run changes nothing.
    before = {path: path.read_bytes() for path in deploy.rglob("*") if path.is_file()}
    assert pin(deploy, "--own", OWN, path=registry).returncode == 0
    assert before == {path: path.read_bytes() for path in deploy.rglob("*") if path.is_file()}


def test_release_step_sees_every_image_in_a_manifest(deploy, registry):
    pin(deploy, "--own", OWN, path=registry)

    left = [
        line.strip()
        for path in deploy.rglob("*")
        if path.is_file() and (path.suffix in (".yaml", ".yml", ".json") or "Docker" in path.name)
        for line in path.read_text().splitlines()
        if re.match(r"\s*(- )?\"?(image\"?:|ARG BASE=|newTag:)", line)
        # The bare name is what kustomize replaces; Compose builds ours where it runs.
        and not re.search(r"@sha256:[0-9a-f]{64}|image: holdfast(:|$)|newTag:", line)
    ]

    assert left == []


def test_our_own_image_needs_its_digest_after_the_push(deploy, registry):
    pinned = pin(deploy, path=registry)

    assert pinned.returncode == 1
    assert "holdfast:" in pinned.stderr
    assert "postgres" not in pinned.stderr


@pytest.mark.parametrize(
    "image", ["postgres", "postgres:latest", "postgres:18", "docker.io/library/postgres:bookworm"]
)
def test_a_floating_tag_is_refused(deploy, registry, image):
    compose = deploy / "compose.yaml"
    text = compose.read_text().replace("docker.io/library/postgres:18.2-bookworm", image)
    compose.write_text(text)

    assert pin(deploy, "--check").returncode == 1
    refused = pin(deploy, "--own", OWN, path=registry)

    assert refused.returncode == 1
    assert f"{image} names no version" in refused.stderr
    assert compose.read_text() == text


@pytest.mark.parametrize("answer", ["", "sha256:abc", "error: unauthorized"])
def test_nothing_is_written_without_the_registrys_own_answer(deploy, registry, answer):
    (registry / "crane").write_text(f"#!/bin/sh\necho '{answer}'\n")
    before = {path: path.read_bytes() for path in deploy.rglob("*") if path.is_file()}

    refused = pin(deploy, "--own", OWN, path=registry)

    assert refused.returncode == 2
    assert before == {path: path.read_bytes() for path in deploy.rglob("*") if path.is_file()}
