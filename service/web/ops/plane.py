"""The parts of the ops plane that its views use."""

from __future__ import annotations

from dataclasses import dataclass, field
from time import monotonic
from typing import Any
from uuid import uuid4

from prometheus_client import CollectorRegistry

from service.observability.health.periodic import HealthChecks
from service.observability.metrics.statistics import Statistics
from service.payments.charge.store import PaymentStore
from service.web.http.auth import Authenticator, Caller
from service.web.http.parts import parts_of
from service.web.http.request_scope import request_deadline
from service.web.ops.history import History

# The tables change slowly; computing them for each poll would cost more than it is worth.
WINDOWS_KEPT_S = 5.0


@dataclass(frozen=True, slots=True)
class Instance:
    """The instance that this console shows."""

    name: str
    version: str
    environment: str
    # The data plane's address for this machine.
    payments_host: str
    payments_port: int
    has_rehearsals: bool
    # The payment method that succeeds in the provider's test mode.
    test_payment_method: str
    # A page that sees a new value talks to another process and restarts its charts.
    boot: str = field(default_factory=lambda: uuid4().hex)


class WindowFigures:
    """The statistics of the windows, computed once for all pages that poll."""

    def __init__(self, statistics: Statistics) -> None:
        self._statistics = statistics
        self._kept: tuple[float, dict[str, Any]] = (float("-inf"), {})

    def windows(self) -> dict[str, Any]:
        """The windows of the statistics, at most WINDOWS_KEPT_S old."""
        kept_at_s, windows = self._kept
        if monotonic() - kept_at_s >= WINDOWS_KEPT_S:
            windows = self._statistics.report()["windows"]
            self._kept = (monotonic(), windows)
        return windows


@dataclass(frozen=True, slots=True, kw_only=True)
class OpsPlane:
    """Built once for each application; its views read it from the application that serves them."""

    authenticate: Authenticator
    instance: Instance
    registry: CollectorRegistry
    health: HealthChecks
    statistics: Statistics
    figures: WindowFigures
    history: History
    store: PaymentStore


def ops_plane() -> OpsPlane:
    """The parts of the application that serves the current request."""
    return parts_of(OpsPlane)


def require_scope(scope: str) -> Caller:
    """The caller of the current request, which has `scope`; raises like the Authenticator."""
    return ops_plane().authenticate(scope, request_deadline())
