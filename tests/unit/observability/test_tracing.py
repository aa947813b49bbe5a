"""A trace's id goes through: in by `traceparent`, into the events, out to the provider."""

from __future__ import annotations

import pytest

from service.observability import logs, spans, tracing

TRACE_ID, SPAN_ID = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SOUND = f"00-{TRACE_ID}-{SPAN_ID}-01"


@pytest.mark.parametrize("header", [SOUND, f" {SOUND} ", f"cc-{TRACE_ID}-{SPAN_ID}-01-what-comes"])
def test_a_sound_header_is_understood_and_later_versions_too(header):
    assert tracing.Trace.parse(header) == tracing.Trace(TRACE_ID, SPAN_ID, is_sampled=True)


@pytest.mark.parametrize(
    "header",
    [
        *(None, "", "x", SOUND.upper(), SOUND[:-1], SOUND + "-more", SOUND.replace("-", "_")),
        *(f"ff-{TRACE_ID}-{SPAN_ID}-01", f"00-{'0' * 32}-{SPAN_ID}-01", SOUND + "\nX: y"),
        *(f"00-{TRACE_ID}-{'0' * 16}-01", "0" * 100_000, f"00-{TRACE_ID}-{SPAN_ID}-zz"),
    ],
)
def test_anything_else_begins_a_trace_of_our_own(header):
    with tracing.continue_trace(header) as trace:
        pass

    assert trace.trace_id != TRACE_ID
    assert tracing.Trace.parse(trace.traceparent) == trace
    assert not trace.is_sampled


def test_our_span_is_part_of_the_callers_trace_everywhere():
    with tracing.continue_trace(SOUND) as trace:
        bound, outgoing, exemplar = (
            logs.bound(),
            tracing.outgoing_traceparent(),
            tracing.exemplar(),
        )

    assert trace.span_id != SPAN_ID
    assert (bound["trace_id"], bound["span_id"]) == (TRACE_ID, trace.span_id)
    assert outgoing == f"00-{TRACE_ID}-{trace.span_id}-01"
    assert exemplar == {"trace_id": TRACE_ID}


def test_outside_of_a_trace_there_is_nothing():
    with tracing.continue_trace(SOUND) as trace:
        tracing.adopt(trace.child())

    assert tracing.outgoing_traceparent() is None
    assert tracing.exemplar() is None
    assert "trace_id" not in logs.bound()


def test_without_an_endpoint_no_span_is_made(monkeypatch):
    monkeypatch.delenv(spans.ENDPOINT_ENV, raising=False)

    is_on = spans.enable(version="1", environment="test", instance="box-1")

    assert not is_on
    with spans.span("provider.confirm") as span:
        assert span is None
