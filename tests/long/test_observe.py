"""`python -m service observe`: the whole run without Grafana, and no process left afterwards."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests

from service.lab.observe.incidents import INCIDENTS
from tests.support.processes.observing import Show, show
from tests.support.processes.process_family import family, runs
from tests.support.shipped_queries import rules
from tests.support.stack.running_stack import wait_for

pytestmark = [pytest.mark.needs("prometheus", "alertmanager"), pytest.mark.short]

# No package index has Grafana, so the test uses this program: it answers the one request, and
# records its own command line.
GRAFANA = """
    import http.server, json, os, pathlib

    class Healthy(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()

    address = os.environ["GF_SERVER_HTTP_ADDR"], int(os.environ["GF_SERVER_HTTP_PORT"])
    server = http.server.HTTPServer(address, Healthy)
    pathlib.Path(__file__).with_name("environ.json").write_text(json.dumps(dict(os.environ)))
    server.serve_forever()
"""


def stand_in_grafana(directory: Path) -> Path:
    """A program of Grafana's name in `directory`, for one tour: it leaves its environment there."""
    program = directory / "grafana-server"
    program.write_text(f"#!{sys.executable}\n{textwrap.dedent(GRAFANA)}")
    program.chmod(0o755)
    return directory


@contextmanager
def hurried_tour(grafana: Path) -> Iterator[Show]:
    with show("--hurry", PATH=f"{grafana}:{os.environ['PATH']}") as tour:
        yield tour


@dataclass(frozen=True, slots=True)
class Finished:
    """An ended `observe`, and Grafana's environment in it."""

    tour: Show
    environ: dict[str, str]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Finished]:
    grafana = stand_in_grafana(tmp_path_factory.mktemp("grafana"))
    with hurried_tour(grafana) as tour:
        said = tour.wait_until_said("That was all three", timeout_s=400)
        assert "No alert paged" not in said, said
        yield Finished(tour, json.loads((grafana / "environ.json").read_text()))


@pytest.mark.slow
def test_each_of_the_three_incidents_pages_and_breaks_no_promise(whole: Finished) -> None:
    said = whole.tour.said()

    assert said.count("broken promises about money: 0") == len(INCIDENTS)
    for incident in INCIDENTS:
        assert incident.words in said
        assert re.search(rf"PAGE +({'|'.join(incident.pages)}): ", said)


@pytest.mark.slow
def test_prometheus_scrapes_the_stack_under_every_shipped_rule(whole: Finished) -> None:
    def ask(what: str, **parameters: str) -> Any:
        url = f"{whole.tour.url('Prometheus')}/api/v1/{what}"
        return requests.get(url, params=parameters, timeout=60).json()["data"]

    def up() -> list[str]:
        return [series["value"][1] for series in ask("query", query='up{job="holdfast"}')["result"]]

    # Shortened, a scrape has one second: on a busy machine one of them may be too late.
    wait_for(lambda: up() == ["1"])
    loaded = [rule["name"] for group in ask("rules")["groups"] for rule in group["rules"]]

    assert sorted(loaded) == sorted(rule.get("alert") or rule["record"] for rule in rules())


@pytest.mark.slow
def test_the_alerts_are_in_alertmanager(whole: Finished) -> None:
    def names() -> set[str]:
        alerts = requests.get(f"{whole.tour.url('Alertmanager')}/api/v2/alerts", timeout=60).json()
        return {alert["labels"]["alertname"] for alert in alerts}

    # This alert fires until the first drill; the others end soon after their incident.
    wait_for(lambda: "NoDrillHeld" in names())


@pytest.mark.slow
def test_grafana_is_given_our_dashboards_and_that_prometheus(whole: Finished) -> None:
    environ = whole.environ

    assert environ["PROMETHEUS_URL"] == whole.tour.url("Prometheus")
    assert (Path(environ["HOLDFAST_DASHBOARDS"]) / "incident.json").is_file()
    assert (Path(environ["GF_PATHS_PROVISIONING"]) / "dashboards" / "holdfast.yml").is_file()
    assert whole.tour.url("Grafana").endswith(f":{environ['GF_SERVER_HTTP_PORT']}")


@pytest.mark.slow
def test_all_data_is_below_its_home(whole: Finished) -> None:
    environ = whole.environ

    kept = {path.parent.name for path in (whole.tour.home / "observe").glob("*/data")}

    assert kept == {"prometheus", "alertmanager"}
    assert Path(environ["GF_PATHS_DATA"]).parent == whole.tour.home / "observe" / "grafana"


@pytest.mark.slow
def test_ctrl_c_stops_everything(tmp_path: Path) -> None:
    with hurried_tour(stand_in_grafana(tmp_path)) as one:
        one.wait_until_said("12 payments a second", timeout_s=240)
        everyone = family(one.process.pid)

        one.process.send_signal(signal.SIGINT)

        assert one.process.wait(120) == 0
    assert len(everyone) > 15
    assert not any(map(runs, everyone))
