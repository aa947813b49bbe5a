"""The blueprint `diagnostics`, on the ops plane: metrics, health and statistics for people on call."""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus

from flask import Blueprint, Response, jsonify, request
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from service.observability.health import HealthChecks
from service.observability.statistics import Statistics


def diagnostics_blueprint(
    *,
    registry: CollectorRegistry,
    health: HealthChecks,
    statistics: Statistics,
    require_operator: Callable[[], object],
) -> Blueprint:
    """`require_operator` raises unless the caller's key may cause work (only `?fresh=1` does)."""
    blueprint = Blueprint("diagnostics", __name__)

    @blueprint.get("/metrics")
    def metrics() -> Response:
        """All workers together; OpenMetrics with exemplars for who accepts it."""
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        return Response(encode(registry), content_type=content_type)

    @blueprint.get("/diagnostics/health")
    def show_health() -> Response:
        if request.args.get("fresh") == "1":
            require_operator()
            health.check_now()
        report = health.report()
        response = jsonify(report)
        response.content_type = "application/health+json"
        # As the draft has it: degraded is served, down is not.
        if report["status"] == "fail":
            response.status_code = HTTPStatus.SERVICE_UNAVAILABLE
        return response

    @blueprint.get("/diagnostics/statistics")
    def show_statistics() -> Response:
        return jsonify(statistics.report())

    @blueprint.after_request
    def forbid_caching(response: Response) -> Response:
        response.headers["Cache-Control"] = "no-store"
        return response

    return blueprint
