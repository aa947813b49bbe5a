"""A stand-in for an ops plane: serves `/metrics` with every series of the catalogue, growing."""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from prometheus_client.metrics import MetricWrapperBase

from service.observability.metrics import catalogue as metrics
from service.payments.settling import invariants

# The values of each label; per metric where two metrics use one label for different things.
WORDS: Mapping[str, tuple[str, ...]] = {
    "provider": ("stripe",),
    "route": ("/v1/payments", "/v1/payments/{payment_id}"),
    "method": ("GET", "POST"),
    "status": ("200", "201", "202", "402", "500", "503"),
    "payments_open.status": metrics.OPEN_STATUSES,
    "outcome": metrics.PAYMENT_OUTCOMES,
    "result": metrics.CALL_RESULTS,
    "idempotent_requests.result": metrics.IDEMPOTENCY_RESULTS,
    "webhooks_received.result": metrics.WEBHOOK_RESULTS,
    "webhook_deliveries.result": metrics.DELIVERY_RESULTS,
    "reason": metrics.SHED_REASONS,
    "provider_retries.reason": metrics.RETRY_REASONS,
    "db_pool_refusals.reason": metrics.POOL_REFUSAL_REASONS,
    "db_pool_connections_discarded.reason": metrics.DISCARD_REASONS,
    "operation": metrics.OPERATIONS,
    "kind": metrics.CONNECTION_ERROR_KINDS,
    "provider_timeouts.kind": metrics.TIMEOUT_KINDS,
    "state": metrics.BREAKER_STATES,
    "from_state": metrics.BREAKER_STATES,
    "to_state": metrics.BREAKER_STATES,
    "class": metrics.DB_ERROR_CLASSES,
    "statement": ("claim", "record"),
    "currency": ("eur", "usd"),
    "rule": tuple(invariants.RULES),
    "component": ("database", "provider", "reconciler", "disk", "clock", "workers"),
    "fault": metrics.FAULTS,
    "drill": ("payment-timeout",),
    "verdict": metrics.VERDICTS,
    "slo": tuple(metrics.SLO_TARGETS),
    "version": ("1.0.0",),
}
# The value of a label that no panel and no rule selects.
ANY = ("any",)
# A gauge of each worker is served with a label that identifies the worker.
EACH_WORKER = ("db_pool_size", "db_pool_in_use", "db_pool_waiting", "worker_threads_busy")


class Exposition:
    """The text of `/metrics`: counters grow by `rates` a second, gauges have the values of `gauges`."""

    def __init__(self, *, rate: float = 5.0, gauge: float = 1.0) -> None:
        self._began_s = time.monotonic()
        self._rate = rate
        self._gauge = gauge
        # By family without the prefix and the suffix `_total`.
        self.rates: dict[str, float] = {}
        self.gauges: dict[str, float] = {}

    def text(self) -> str:
        age_s = time.monotonic() - self._began_s
        lines = []
        for metric in vars(metrics).values():
            if isinstance(metric, MetricWrapperBase):
                lines += list(self._samples(metric, age_s))
        return "\n".join(lines) + "\n"

    def _samples(self, metric: MetricWrapperBase, age_s: float) -> Iterator[str]:
        family = metric._name
        short = family.removeprefix(f"{metrics.NAMESPACE}_")
        yield f"# TYPE {family} {metric._type}"
        for labels in self._label_sets(metric, short):
            grown = self.rates.get(short, self._rate) * age_s
            if metric._type == "counter":
                yield f"{family}_total{_written(labels)} {grown}"
            elif metric._type == "gauge":
                yield f"{family}{_written(labels)} {self.gauges.get(short, self._gauge)}"
            else:
                edges = metric._kwargs["buckets"]
                for number, edge in enumerate([*edges, "+Inf"], start=1):
                    count = grown * number / (len(edges) + 1)
                    yield f"{family}_bucket{_written({**labels, 'le': str(edge)})} {count}"
                yield f"{family}_count{_written(labels)} {grown}"
                yield f"{family}_sum{_written(labels)} {grown / 2}"

    def _label_sets(self, metric: MetricWrapperBase, short: str) -> Iterator[dict[str, str]]:
        names = list(metric._labelnames)
        words = [WORDS.get(f"{short}.{name}") or WORDS.get(name, ANY) for name in names]
        if short in EACH_WORKER:
            names, words = [*names, "worker"], [*words, ("web-0", "web-1")]
        for values in itertools.product(*words):
            yield dict(zip(names, values, strict=True))


@contextlib.contextmanager
def serving(exposition: Exposition) -> Iterator[str]:
    """Serve it on a free loopback port; gives host:port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = exposition.text().encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Keep the test's output to the test."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _written(labels: Mapping[str, str]) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{name}="{value}"' for name, value in labels.items()) + "}"
