"""A payment's trace, on the running service with a collector."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.processes.span_collector import Collector, collecting
from tests.support.stack.running_stack import RunningStack, running_stack, wait_for

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
ROUTE = "POST /v1/payments"


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with collecting() as collector:
        yield collector


@pytest.fixture(scope="module")
def local_stack(
    tmp_path_factory: pytest.TempPathFactory, collector: Collector
) -> Iterator[RunningStack]:
    settings = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_BSP_SCHEDULE_DELAY": "100"}
    with running_stack(tmp_path_factory.mktemp("traced"), **settings) as local_stack:
        yield local_stack


def test_payment_is_one_trace_from_caller_to_provider(
    local_stack: RunningStack, collector: Collector
) -> None:
    paid = local_stack.pay(
        payment_method="pm_card_visa",
        headers={"traceparent": f"00-{TRACE_ID}-00f067aa0ba902b7-01"},
    )
    assert paid.status_code == 201, paid.text

    wait_for(lambda: ROUTE in {span.name for span in collector.spans(TRACE_ID)})
    spans = {span.name: span for span in collector.spans(TRACE_ID)}
    of_request = spans[ROUTE]
    calls = [spans["provider.prepare"], spans["provider.confirm"]]
    statements = [span for span in spans.values() if _is_statement(span)]
    assert of_request.parent_span_id.hex() == "00f067aa0ba902b7"
    assert {call.parent_span_id for call in calls} == {of_request.span_id}
    assert statements
    # Only the provider receives the payment method.
    assert not any(b"pm_card_visa" in export.SerializeToString() for export in collector.exports)

    events = [event for event in local_stack.log_events() if event.get("trace_id") == TRACE_ID]
    assert "payment.succeeded" in {event["event"] for event in events}


def _is_statement(span: object) -> bool:
    attributes = span.attributes  # type: ignore[attr-defined]
    return any(one.key in ("db.system", "db.system.name") for one in attributes)
