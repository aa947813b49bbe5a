"""Workers: running processes, their load, and the completeness of the metrics."""

from __future__ import annotations

from grafana.boards.overview import HEALTH
from grafana.frame import Board
from grafana.panels import BAD, GOOD, LIMIT, REFUSED, WAIT, lines, number, states
from grafana.queries import INSTANCE, added, largest, per_second, quantile

BOARD = Board(
    name="workers",
    title="Workers",
    description="Instances and their workers: versions, threads, requests by route, health checks, and the scrape itself.",
    rows=[
        (
            "Which processes run?",
            [
                number(
                    "Instances that answer",
                    "short",
                    "Good is all of them.",
                    "MetricsMissing",
                    ('sum(up{job="holdfast"})', "instances"),
                    steps=((None, BAD), (1, GOOD)),
                ),
                number(
                    "Versions",
                    "short",
                    "Good is one; two for the minutes of a deploy.",
                    "README",
                    (f"count by (version) (holdfast_build_info{{{INSTANCE}}})", "{{version}}"),
                    steps=((None, LIMIT),),
                    width=8,
                    is_name=True,
                ),
                number(
                    "Requests in flight",
                    "short",
                    "Good is below the number of threads.",
                    "PaymentsRefused",
                    (added("http_requests_in_flight"), "requests"),
                    steps=((None, GOOD), (24, WAIT), (32, BAD)),
                ),
                number(
                    "Series of an instance",
                    "short",
                    "Good is below 2,000; growth without end is a label with too many values.",
                    "MetricsMissing",
                    ('max(scrape_samples_scraped{job="holdfast"})', "series"),
                    steps=((None, GOOD), (2000, WAIT), (4500, BAD)),
                ),
                number(
                    "Time of a scrape",
                    "s",
                    "Good is below 50 ms.",
                    "MetricsMissing",
                    ('max(scrape_duration_seconds{job="holdfast"})', "scrape"),
                    steps=((None, GOOD), (0.05, WAIT), (1, BAD)),
                    decimals=1,
                ),
            ],
        ),
        (
            "How busy?",
            [
                lines(
                    "Threads at work, by worker",
                    "short",
                    "Good is below the threads of a worker (16), and even.",
                    "PaymentsRefused",
                    (
                        largest("worker_threads_busy", by="instance, worker"),
                        "{{instance}} {{worker}}",
                    ),
                ),
                lines(
                    "Requests by route",
                    "ops",
                    "Good follows the day's traffic; a fall to 0 is a balancer or a client.",
                    "PaymentsRefused",
                    (per_second("http_requests_total", by="method, route"), "{{method}} {{route}}"),
                ),
                lines(
                    "Time to answer, p99 by route",
                    "s",
                    "Good is reads below 100 ms, while payments wait for the provider too.",
                    "QuickAnswersBudgetBurn",
                    (
                        quantile(0.99, "http_request_duration_seconds", by="method, route"),
                        "{{method}} {{route}}",
                    ),
                ),
                lines(
                    "Requests in flight",
                    "short",
                    "Good is in step with traffic; a climb without traffic means hanging requests.",
                    "PaymentsRefused",
                    (largest("http_requests_in_flight", by="instance"), "{{instance}}"),
                ),
                lines(
                    "Answers 500, by route",
                    "ops",
                    "Good is 0: each is a bug.",
                    "InternalErrors",
                    (
                        f'sum by (route) (rate(holdfast_http_requests_total{{{INSTANCE}, status="500"}}[$__rate_interval]))'
                        " or vector(0)",
                        "500 {{route}}",
                    ),
                ),
                lines(
                    "Refused early, by reason",
                    "ops",
                    "Good is 0; draining appears while an instance stops.",
                    "PaymentsRefused",
                    (per_second("requests_shed_total", by="reason"), "{{reason}}"),
                    colour=REFUSED,
                    stacked=True,
                ),
            ],
        ),
        (
            "Health checks",
            [
                states(
                    "Health of the components",
                    "Good is green throughout; yellow is degraded, which is not down.",
                    "ComponentDown",
                    (
                        f"min by (instance, component) (holdfast_health_status{{{INSTANCE}}})",
                        "{{component}} {{instance}}",
                    ),
                    meaning=HEALTH,
                    width=12,
                ),
                lines(
                    "Time of a health check, p99",
                    "s",
                    "Good is below 0.5 s; a slow check is the first sign of a slow component.",
                    "ComponentDown",
                    (
                        "histogram_quantile(0.99, sum by (component, le) (rate("
                        f"holdfast_health_check_duration_seconds_bucket{{{INSTANCE}}}[$__rate_interval])))",
                        "{{component}}",
                    ),
                    width=12,
                ),
            ],
        ),
    ],
)
