"""The blueprint `diagnostics`, on the ops plane: metrics, health and statistics for people on call."""

from __future__ import annotations

from http import HTTPStatus

from flask import Blueprint, Response, jsonify, request
from prometheus_client.exposition import choose_encoder

from service.payments.merchants import PLATFORM
from service.web.openapi.operation import Operation, documented
from service.web.ops.plane import ops_plane, require_scope

_OPEN_METRICS = "application/openmetrics-text"


blueprint = Blueprint("diagnostics", __name__)


@blueprint.get("/metrics")
@documented(
    Operation(
        summary="All workers' metrics, in Prometheus' text format or OpenMetrics",
        answers={200: ("The metrics", None)},
        media_type="text/plain",
    )
)
def metrics() -> Response:
    """All workers together; OpenMetrics with exemplars if the client accepts it."""
    encode, content_type = choose_encoder(understood_accept(request.headers.get("Accept", "")))
    return Response(encode(ops_plane().registry), content_type=content_type)


@blueprint.get("/diagnostics/health")
@documented(
    Operation(
        summary="Each component: status, since when, last error; `?fresh=1` (platform) checks now",
        answers={
            200: ("All components that payments need are up; others may be degraded", None),
            503: ("A component that payments need is down", None),
        },
        media_type="application/health+json",
        problems=("forbidden",),
    )
)
def show_health() -> Response:
    health = ops_plane().health
    if request.args.get("fresh") == "1":
        require_scope(PLATFORM)
        health.check_now()
    report = health.report()
    response = jsonify(report)
    response.content_type = "application/health+json"
    # By the draft: degraded is a success, down is not.
    if report["status"] == "fail":
        response.status_code = HTTPStatus.SERVICE_UNAVAILABLE
    return response


@blueprint.get("/diagnostics/statistics")
@documented(
    Operation(
        summary="Success rates, response times, errors, pool, breaker and queue: 1 m, 5 m, 1 h",
        answers={200: ("The figures of all workers together", None)},
        problems=("forbidden",),
    )
)
def show_statistics() -> Response:
    return jsonify(ops_plane().statistics.report())


@blueprint.after_request
def forbid_caching(response: Response) -> Response:
    response.headers["Cache-Control"] = "no-store"
    return response


def understood_accept(accept: str) -> str:
    """The Accept header for the encoder: OpenMetrics 1.0.0 if the client accepts it, else text.

    The encoder itself raises for versions that are no plain numbers, or quoted as in RFC 9110.
    """
    for media_range in accept.replace('"', "").lower().split(","):
        kind, *parameters = (part.strip() for part in media_range.split(";"))
        values = dict(part.partition("=")[::2] for part in parameters)
        is_refused = values.get("q", "1").strip("0.") == ""
        if (
            kind == _OPEN_METRICS
            and values.get("version", "1.0.0") in ("", "1.0.0")
            and not is_refused
        ):
            return f"{_OPEN_METRICS}; version=1.0.0"
    return ""
