"""Spans by OpenTelemetry's packages (extra `otel`), off unless an endpoint is set.

Off by default for a measured reason: instrumenting Flask adds more than half of a request's CPU
time, sampled or not. The packages themselves read the `OTEL_*` variables.
"""

from __future__ import annotations

import contextlib
import logging
import os
from typing import Any

from service.observability import tracing
from service.observability.logs import SERVICE

ENDPOINT_ENV = "OTEL_EXPORTER_OTLP_ENDPOINT"
# Probes and scrapes come every few seconds and belong to no trace.
_UNTRACED = "healthz,readyz,metrics"
_SAMPLED = 0x01

log = logging.getLogger(__name__)

_tracer: Any = None


def enable(*, version: str, environment: str, instance: str) -> bool:
    """Send spans when an endpoint is set; returns whether it does.

    Call it after the fork (a separate thread sends the spans) and before the pool connects.
    Never raises for missing packages or a dead collector: traces are worth less than payments.
    """
    global _tracer
    if not os.environ.get(ENDPOINT_ENV):
        return False
    try:
        # An optional extra; the first one is for `trace_requests`, which must not fail later.
        import opentelemetry.instrumentation.flask  # noqa: F401
        from opentelemetry import trace
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.instrumentation.psycopg2 import Psycopg2Instrumentor
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        fields = {"missing": error.name, "fix": "pip install holdfast[otel]"}
        log.warning("tracing.packages_missing", extra=fields)
        return False

    attributes = {
        "service.name": os.environ.get("OTEL_SERVICE_NAME", SERVICE),
        "service.version": version,
        "service.instance.id": instance,
        "deployment.environment.name": environment,
    }
    provider = TracerProvider(resource=Resource.create(attributes))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
    # Values are sent separately from their statements, so no span contains one.
    Psycopg2Instrumentor().instrument(skip_dep_check=True)
    _tracer = trace.get_tracer(SERVICE, version)
    log.info("tracing.enabled")
    return True


def trace_requests(app: Any) -> None:
    """Create a span for each request of this Flask application when spans are on."""
    if _tracer is None:
        return
    # An optional extra, as in `enable`.
    from opentelemetry.instrumentation.flask import FlaskInstrumentor

    instrumentor: Any = FlaskInstrumentor()
    instrumentor.instrument_app(app, excluded_urls=_UNTRACED)
    # After the instrumentation's hook: its span has begun, and logs use its ids.
    app.before_request(_adopt_current_span)


def span(
    name: str, **attributes: str | int | float | bool
) -> contextlib.AbstractContextManager[Any]:
    """A span around a block (a call to the provider); no effect when spans are off."""
    if _tracer is None:
        return contextlib.nullcontext()
    current: contextlib.AbstractContextManager[Any] = _tracer.start_as_current_span(
        name, attributes=attributes
    )
    return current


def _adopt_current_span() -> None:
    # An optional extra, as in `enable`.
    from opentelemetry import trace

    context = trace.get_current_span().get_span_context()
    if context.is_valid:
        is_sampled = bool(context.trace_flags & _SAMPLED)
        tracing.adopt(
            tracing.Trace(f"{context.trace_id:032x}", f"{context.span_id:016x}", is_sampled)
        )
