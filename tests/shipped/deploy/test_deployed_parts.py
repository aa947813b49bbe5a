"""Compose, Kubernetes and ECS: commands of the image, existing settings, and time to stop."""

from __future__ import annotations

import fnmatch
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from service.__main__ import COMMANDS
from service.settings import Settings, describe
from service.version import VERSION
from tests.support.manifests import DEPLOY, ENTRYPOINT, ROOT, Part, ecs, parts
from tests.support.stack.running_stack import RunningStack, running_stack

PARTS = list(parts())
SERVING = [part for part in PARTS if part.sub_command in ("serve", "ops", "reconcile")]
ENGINES = sorted({part.engine for part in PARTS})
DOCKERFILE = (DEPLOY / "Dockerfile").read_text()
IMAGE_ENVIRON = dict(re.findall(r"([A-Z_]+)=(\S+)", DOCKERFILE.partition("ENV TMPDIR")[2]))
# The engine's kill comes at least this long after our own end, or a busy node would kill first.
GRACE_MARGIN_S = 5


@pytest.mark.parametrize("part", PARTS, ids=str)
def test_every_variable_is_a_setting_and_only_secrets_are_files(part: Part) -> None:
    plain = {name for name, *_ in describe()}
    secret = {name for name, *_, is_secret in describe() if is_secret}

    unknown = set(part.environ) - plain
    from_elsewhere = {name.removesuffix("_FILE") for name in part.secret_environ} - secret

    assert unknown == set()
    assert from_elsewhere == set()
    assert not secret & set(part.environ), "a secret is written down in the manifest"


@pytest.mark.parametrize("part", PARTS, ids=str)
def test_every_value_is_one_that_the_service_takes(part: Part) -> None:
    settings = Settings.from_environ({**IMAGE_ENVIRON, **part.environ})

    assert settings.env == "production"
    assert not settings.simulation_enabled


@pytest.mark.parametrize("part", PARTS, ids=str)
def test_every_command_exists_and_its_files_are_in_the_image(part: Part) -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    carried = [line.removeprefix("!") for line in ignored if line.startswith("!")]

    files = [word for word in part.command if word.startswith("deploy/")]

    assert part.sub_command in COMMANDS
    assert part.command[-4:-1] == ENTRYPOINT
    for file in files:
        assert (ROOT / file).is_file(), file
        assert any(fnmatch.fnmatch(file, pattern) for pattern in carried), file


@pytest.mark.parametrize("engine", ENGINES)
def test_instance_is_complete_and_only_migrate_is_the_owner(engine: str) -> None:
    commands = {part.sub_command: part for part in PARTS if part.engine == engine}

    owners = {
        name
        for name, part in commands.items()
        if any(variable.startswith("MIGRATE_DATABASE_URL") for variable in part.secret_environ)
    }

    assert set(commands) == {"serve", "ops", "reconcile", "migrate"}
    assert owners == {"migrate"}


@pytest.mark.parametrize("part", PARTS, ids=str)
def test_the_images_version_is_the_packages(part: Part) -> None:
    # A release's commit adds the digest.
    assert part.image.partition("@")[0].rpartition(":")[2] == VERSION


@pytest.mark.parametrize("part", SERVING, ids=str)
def test_engine_kills_only_after_the_time_of_calls_in_flight(part: Part) -> None:
    settings = Settings.from_environ(part.environ)

    own_end_s = settings.drain_s + settings.graceful_stop_s

    assert part.grace_s is not None
    assert part.grace_s >= own_end_s + GRACE_MARGIN_S
    # A request accepted at the end of the drain has its whole budget, and time for its record.
    assert settings.graceful_stop_s >= settings.request_timeout_ms / 1000 + 2


@pytest.mark.parametrize("engine", ENGINES)
def test_every_part_of_an_instance_reads_the_same_settings(engine: str) -> None:
    environs = [part.environ for part in SERVING if part.engine == engine]

    assert all(environ == environs[0] for environ in environs)
    assert "HOLDFAST_DRAIN_S" in environs[0]


def test_logs_are_kept_where_the_agent_reads_them() -> None:
    agent = json.loads((DEPLOY / "cloudwatch" / "agent.json").read_text())
    collected = {
        each["file_path"] for each in agent["logs"]["logs_collected"]["files"]["collect_list"]
    }
    keeping = [
        part for part in SERVING if part.engine in ("compose", "ecs", "kubernetes/overlays/eks")
    ]

    for engine in {part.engine for part in keeping}:
        kept = {part.command[2] for part in keeping if part.engine == engine}
        assert kept == collected
    for part in keeping:
        assert part.command[:2] == ("python", "deploy/keep_log.py")
        assert Path(part.command[2]).stem == part.name


def test_the_ports_are_those_that_the_image_binds_and_exposes() -> None:
    bound = {
        IMAGE_ENVIRON[name].rpartition(":")[2] for name in ("HOLDFAST_BIND", "HOLDFAST_OPS_BIND")
    }

    exposed = re.search(r"^EXPOSE (.+)$", DOCKERFILE, re.MULTILINE)

    assert exposed is not None
    assert set(exposed[1].split()) == bound
    assert {str(port) for part in PARTS for port, _ in part.probes} == bound


@pytest.fixture(scope="module")
def local_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    with running_stack(tmp_path_factory.mktemp("probed")) as local_stack:
        yield local_stack


def test_every_probed_address_answers_on_the_real_service(local_stack: RunningStack) -> None:
    data_port = int(IMAGE_ENVIRON["HOLDFAST_BIND"].rpartition(":")[2])
    asked = {probe for part in PARTS for probe in part.probes}
    asked.add((data_port, ecs("target-group")["HealthCheckPath"]))

    statuses = {
        (port, path): requests.get(
            (local_stack.url if port == data_port else local_stack.ops_url) + path, timeout=60
        ).status_code
        for port, path in asked
    }

    assert {path for _, path in asked} == {"/healthz", "/readyz"}
    assert set(statuses.values()) == {200}, statuses
