"""Every counter is preregistered at 0 before its first event."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client import Counter

from service.observability.metrics import catalogue as metrics

# A separate process: other tests have used the counters of this one.
PROGRAM = """
import json
from prometheus_client import REGISTRY
from service.observability.metrics import catalogue as metrics, preregister
preregister.begin_pool()
preregister.begin_provider("stripe")
preregister.begin_answers([("/v1/payments", "POST")])
preregister.begin_settling()
preregister.begin_drills(["payment-timeout"])
print(json.dumps([
    [sample.name, sample.labels, sample.value]
    for metric in REGISTRY.collect() if metric.type == "counter"
    for sample in metric.samples if sample.name.startswith("holdfast_")
    and sample.name.endswith("_total")
]))
"""


@pytest.fixture(scope="module")
def begun() -> list[tuple[str, dict[str, str], float]]:
    answer = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=Path(__file__).parents[3],
        env={k: v for k, v in os.environ.items() if k != "PROMETHEUS_MULTIPROC_DIR"},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return [tuple(sample) for sample in json.loads(answer.stdout)]


def test_every_counter_has_a_series_before_its_first_event(begun):
    in_catalogue = {f"{m._name}_total" for m in vars(metrics).values() if isinstance(m, Counter)}

    assert {name for name, _, _ in begun} == in_catalogue
    assert {value for _, _, value in begun} == {0.0}


@pytest.mark.parametrize(
    ("name", "labels"),
    [
        ("provider_timeouts_total", {"operation": "confirm", "kind": "timeout"}),
        ("provider_connection_errors_total", {"kind": "reset"}),
        ("breaker_transitions_total", {"from_state": "closed", "to_state": "open"}),
        ("db_pool_refusals_total", {"reason": "waiters_full"}),
        ("webhook_deliveries_total", {"result": "given_up"}),
        ("http_requests_total", {"route": "/v1/payments", "method": "POST", "status": "500"}),
        ("drill_runs_total", {"drill": "payment-timeout", "verdict": "broke"}),
    ],
)
def test_first_event_of_an_alert_grows_an_existing_series(begun, name, labels):
    provider = {"provider": "stripe"} if "breaker" in name or "provider" in name else {}

    assert [f"holdfast_{name}", {**labels, **provider}, 0.0] in [list(one) for one in begun]
