"""With an endpoint set, OpenTelemetry's packages send our spans there; a real collector's door."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.support.processes.span_collector import Collector, collecting

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
# A separate process: the packages keep their state for the life of a process.
SERVICE = """
import json, sys
from flask import Flask
from opentelemetry import trace
from service.observability import logs, spans, tracing
assert spans.enable(version="1.2.3", environment="test", instance="box-1")
app = Flask("service")
@app.get("/v1/payments/<payment_id>")
def show(payment_id):
    with spans.span("provider.look_up", provider="stripe"):
        return dict(logs.bound(), out=tracing.outgoing_traceparent())
@app.get("/healthz")
def healthz():
    return {}
spans.trace_requests(app)
client = app.test_client()
client.get("/healthz")
with tracing.continue_trace(sys.argv[1]):
    print(json.dumps(client.get("/v1/payments/pay_1", headers={"traceparent": sys.argv[1]}).json))
trace.get_tracer_provider().shutdown()
"""


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as collector:
        yield collector


def test_spans_and_events_continue_the_callers_trace(collector):
    environ = {**os.environ, "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url}
    environ.pop("PROMETHEUS_MULTIPROC_DIR", None)

    answer = subprocess.run(
        [sys.executable, "-c", SERVICE, f"00-{TRACE_ID}-00f067aa0ba902b7-01"],
        env=environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )

    bound = json.loads(answer.stdout)
    sent = {span.name: span for span in collector.spans()}
    of_request = sent["GET /v1/payments/<payment_id>"]
    assert {span.trace_id.hex() for span in sent.values()} == {TRACE_ID}
    assert sent["provider.look_up"].parent_span_id == of_request.span_id
    assert (bound["trace_id"], bound["span_id"]) == (TRACE_ID, of_request.span_id.hex())
    assert bound["out"] == f"00-{TRACE_ID}-{of_request.span_id.hex()}-01"
    assert not any("healthz" in name for name in sent)


def test_a_dead_collector_stops_nobody():
    environ = {
        **os.environ,
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9",
        "OTEL_EXPORTER_OTLP_TIMEOUT": "1",
    }

    answer = subprocess.run(
        [sys.executable, "-c", SERVICE, "none"],
        env=environ,
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert answer.returncode == 0, answer.stderr
    assert json.loads(answer.stdout)["trace_id"]


@pytest.mark.parametrize("missing", ["exporter", "sdk", "instrumentation.flask"])
def test_start_without_otel_packages_names_the_missing_ones(missing):
    program = f"""
import sys
sys.modules["opentelemetry.{missing}"] = None
from service.observability import logs, spans
logs.configure("INFO", environment="test", instance="box-1")
print(spans.enable(version="1.2.3", environment="test", instance="box-1"))
"""
    answer = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert answer.returncode == 0, answer.stderr
    assert "False" in answer.stdout
    assert "tracing.packages_missing" in answer.stdout + answer.stderr
