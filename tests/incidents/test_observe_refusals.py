"""`python -m service observe` with a missing part: its output, and no processes left behind."""

from __future__ import annotations

import signal

import pytest

from tests.support.processes.observing import show
from tests.support.processes.process_family import family, runs


@pytest.mark.slow
def test_missing_prometheus_is_reported_with_its_install_command() -> None:
    with show(PATH="/nowhere") as one:
        said = one.wait_until_said("12 payments a second", timeout_s=120)
        everyone = family(one.process.pid)

        one.process.send_signal(signal.SIGTERM)

        assert one.process.wait(60) == 0

    (line,) = (line for line in said.splitlines() if "apt-get install" in line)
    assert "prometheus, alertmanager" in line
    assert not any(map(runs, everyone))


def test_it_never_pays_at_a_real_provider() -> None:
    with show(STRIPE_API_BASE="https://api.stripe.com", STRIPE_API_KEY="sk_test_x") as one:
        status = one.process.wait(90)

        assert status == 2
        assert "STRIPE_API_BASE" in one.said()


@pytest.mark.slow
def test_without_the_fault_proxy_there_is_nothing_to_show() -> None:
    with show(PATH="/nowhere", HOLDFAST_SIMULATION_ENABLED="false") as one:
        status = one.process.wait(90)

        assert status == 2
        assert "HOLDFAST_SIMULATION_ENABLED" in one.said()
