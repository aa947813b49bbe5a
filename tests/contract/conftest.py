"""The contract suite's providers, each started once in a session."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from service.providers.base import Provider
from tests.support.processes.sandbox_process import SandboxProcess
from tests.support.processes.tls_front import TlsFront, tls_front
from tests.support.providers.provider_rigs import Localstripe, Rig, Sandbox, StripeMock
from tests.support.providers.rival_providers import running_localstripe, running_stripe_mock


@pytest.fixture(scope="session")
def sandbox_front(sandbox_process: SandboxProcess) -> Iterator[TlsFront]:
    with tls_front(sandbox_process.url, sandbox_process.ca_file) as front:
        yield front


@pytest.fixture(scope="session")
def localstripe() -> Iterator[Localstripe]:
    with running_localstripe() as url, tls_front(url) as front:
        yield Localstripe(front, url)


@pytest.fixture(scope="session")
def stripe_mock() -> Iterator[StripeMock]:
    with running_stripe_mock() as url, tls_front(url) as front:
        yield StripeMock(front, url, "one_shot")


@pytest.fixture(
    params=[
        *("sandbox-two_phase", "sandbox-one_shot", "localstripe"),
        pytest.param("stripe-stateful-mock", marks=pytest.mark.needs("stripe-mock")),
    ]
)
def rig(request: pytest.FixtureRequest) -> Rig:
    """Each provider in turn; only in two_phase where it ignores keys."""
    match request.param:
        case "localstripe":
            return request.getfixturevalue("localstripe")
        case "stripe-stateful-mock":
            return request.getfixturevalue("stripe_mock")
    sandbox = request.getfixturevalue("sandbox")
    flow = request.param.removeprefix("sandbox-")
    rig = Sandbox(request.getfixturevalue("sandbox_front"), sandbox.url, flow)
    rig.sandbox = sandbox
    return rig


@pytest.fixture
def provider(rig: Rig) -> Iterator[Provider]:
    with rig.provider() as provider:
        yield provider
