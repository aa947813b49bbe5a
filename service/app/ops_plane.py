"""The ops plane: metrics over all workers, the console, and drills where they are enabled."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from datetime import UTC, datetime

from flask import Flask

from service.app.parts import (
    adapter_of,
    address_of,
    pool_of,
    routes_of,
    web_app,
)
from service.database.pool.pool import ConnectionPool, Statement
from service.observability.health import components as check
from service.observability.health.periodic import HealthChecks
from service.observability.metrics import catalogue as metrics
from service.observability.metrics import preregister
from service.observability.metrics.registry import (
    SampleKey,
    read_samples,
    shared_registry,
)
from service.observability.metrics.sampler import Sampler
from service.observability.metrics.statistics import FINE_S, Statistics
from service.payments.charge.store import PaymentStore
from service.payments.merchants import KeyStore
from service.payments.settling.run_locks import RunLocks
from service.payments.settling.sweep_report import SweepReport
from service.providers.later import LaterProvider
from service.resilience.deadline import Deadline
from service.resilience.watchdog import Watchdog
from service.settings import Settings, SettingsError, reachable
from service.startup.database import OPS_POOL_SIZE
from service.version import VERSION
from service.web.api import health as probes
from service.web.api.health import Readiness
from service.web.http import same_origin
from service.web.http.auth import Authenticator
from service.web.http.parts import put_parts
from service.web.openapi import document
from service.web.ops import console, diagnostics
from service.web.ops.history import History
from service.web.ops.plane import Instance, OpsPlane, WindowFigures
from service.web.server import lifecycle

OPS_REQUEST_TIMEOUT_S = 5.0
HEALTH_CHECK_TIMEOUT_S = 2.0

_NOW = Statement("now", "SELECT now()")


def create_ops_app(settings: Settings) -> Flask:
    """The ops plane: metrics over all workers, health and statistics, on separate threads."""
    watchdog = Watchdog()
    pool = pool_of(settings, watchdog, size=OPS_POOL_SIZE)
    provider = adapter_of(settings, watchdog, connections=1)
    plane = _observe(settings, pool, provider)
    metrics.build_info.labels(version=VERSION).set(1)
    for slo, target in metrics.SLO_TARGETS.items():
        metrics.slo_target_ratio.labels(slo=slo).set(target)
    app = web_app(OPS_REQUEST_TIMEOUT_S)
    same_origin.install(app, _ops_hosts(settings))
    # This plane serves without a database too: an outage is when people need it.
    put_parts(app, Readiness(lambda deadline: None, is_stopping=lifecycle.is_stopping))
    app.register_blueprint(probes.blueprint)
    put_parts(app, plane)
    app.register_blueprint(diagnostics.blueprint)
    app.register_blueprint(console.blueprint)
    drills: tuple[str, ...] = ()
    if settings.simulation_enabled:
        drills = _add_drills(
            app,
            settings,
            pool,
            provider,
            read=lambda: read_samples(plane.registry),
            statistics=plane.statistics,
        )
    put_parts(
        app,
        document.Description(
            title="Holdfast: operations",
            version=VERSION,
            address=address_of(settings.ops_bind),
        ),
    )
    app.register_blueprint(document.blueprint)
    preregister.begin_answers(routes_of(app))
    preregister.begin_drills(drills)
    return app


def _observe(settings: Settings, pool: ConnectionPool, provider: LaterProvider) -> OpsPlane:
    """Build what the views show, and start its two threads: the health checks and the sampler."""
    registry = shared_registry()
    sampler = Sampler(lambda: read_samples(registry))
    statistics, history = Statistics(sampler.samples), History(sampler)
    health = _health(settings, pool, provider, statistics)
    health.start()
    sampler.follow(
        statistics.take_reading,
        every_s=lambda: FINE_S,
        failure_event="statistics.reading_failed",
    )
    sampler.follow(
        history.take_reading, every_s=history.every_s, failure_event="console.reading_failed"
    )
    sampler.start()
    return OpsPlane(
        authenticate=Authenticator(KeyStore(pool), mode=settings.provider_mode),
        instance=_instance(settings),
        registry=registry,
        health=health,
        statistics=statistics,
        figures=WindowFigures(statistics),
        history=history,
        store=PaymentStore(pool, lease_s=0.0, queue_expires_s=settings.queue_expires_s),
    )


def _health(
    settings: Settings, pool: ConnectionPool, provider: LaterProvider, statistics: Statistics
) -> HealthChecks:
    locks = RunLocks(pool)
    sweep_report = SweepReport(pool, provider.name)
    return HealthChecks(
        [
            check.database(lambda: pool.run(_NOW, {}, _check_deadline()), statistics.report),
            check.provider(lambda: _reach(provider), statistics.report),
            check.reconciler(
                lambda: locks.last_heartbeat("reconciler", _check_deadline()),
                lambda: sweep_report.waiting(_check_deadline()),
            ),
            check.disk(settings.metrics_path),
            check.clock(lambda: pool.run(_NOW, {}, _check_deadline())[0][0]),
            check.workers(settings.web_workers),
        ],
        version=VERSION,
        instance=socket.gethostname(),
    )


def _instance(settings: Settings) -> Instance:
    payments_host, payments_port = reachable(settings.bind)
    return Instance(
        name=socket.gethostname(),
        version=VERSION,
        environment=settings.env,
        payments_host=payments_host,
        payments_port=payments_port,
        has_rehearsals=settings.simulation_enabled,
        test_payment_method=settings.test_payment_method,
    )


def _add_drills(
    app: Flask,
    settings: Settings,
    pool: ConnectionPool,
    provider: LaterProvider,
    *,
    read: Callable[[], Mapping[SampleKey, float]],
    statistics: Statistics,
) -> tuple[str, ...]:
    """Add simulations and drills, and return their names."""
    try:
        # Not at the top: the production image leaves the lab out, and enables neither.
        from service.lab.drills import assembly, routes
    except ModuleNotFoundError as error:
        if error.name != "service.lab":
            raise
        raise SettingsError(
            "HOLDFAST_SIMULATION_ENABLED needs service.lab, which this installation leaves out:"
            " turn it off, or build the image with --build-arg LAB=1."
        ) from error
    drill_runs = assembly.assemble(
        settings,
        pool,
        list_charges=provider.list_since,
        read=read,
        statistics=statistics.report,
    )
    put_parts(app, drill_runs)
    app.register_blueprint(routes.blueprint)
    return tuple(drill_runs.catalogue)


def _ops_hosts(settings: Settings) -> frozenset[str]:
    """The names by which people may reach the ops plane."""
    names = {name.strip().lower() for name in (settings.ops_hosts or "").split(",")} - {""}
    own, _ = reachable(settings.ops_bind)
    return frozenset({*names, own, "localhost", "127.0.0.1", "::1"})


def _reach(provider: LaterProvider) -> None:
    """Request an empty list: it moves no money and raises Busy without an answer."""
    next(provider.list_since(datetime.now(UTC), _check_deadline()), None)


def _check_deadline() -> Deadline:
    return Deadline.after(HEALTH_CHECK_TIMEOUT_S)
