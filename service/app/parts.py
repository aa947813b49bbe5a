"""Builds every part of the system from the settings, once for each process."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from flask import Blueprint, Flask

from service.app.background import LATE_AT_ONCE, Background
from service.database.migrate import runner as migrate
from service.database.migrate.requirements import ENCODING, SUITABLE_SQL
from service.database.pool.pool import ConnectionPool, Statement
from service.observability import spans
from service.observability.health import components as check
from service.observability.health.checks import HealthChecks
from service.observability.metrics import catalogue as metrics
from service.observability.metrics import preregister
from service.observability.metrics.registry import (
    RecentSamples,
    SampleKey,
    read_samples,
    shared_registry,
)
from service.observability.metrics.statistics import Statistics
from service.payments.charge.handler import PaymentHandler
from service.payments.charge.open_limit import OpenLimit
from service.payments.charge.store import RECORD_TIMEOUT_S, PaymentStore
from service.payments.events.deliveries import Deliverer
from service.payments.events.endpoints import EndpointStore
from service.payments.events.feed import EventFeed
from service.payments.merchants import PLATFORM, KeyStore
from service.payments.movements.handler import MovementHandler
from service.payments.movements.store import MovementStore
from service.payments.retention import Kept, Retention
from service.payments.settling.figures import OpenFigures
from service.payments.settling.forward import Forwarder
from service.payments.settling.invariant_checks import InvariantChecks
from service.payments.settling.late import LateFacts
from service.payments.settling.late_store import LateStore
from service.payments.settling.movement_reconcile import MovementReconciler
from service.payments.settling.reconcile import Reconciler
from service.payments.settling.recovery import Recovery
from service.payments.settling.store import SettlingStore
from service.payments.settling.sweep import Sweep
from service.payments.settling.sweep_progress import SweepRuns
from service.payments.settling.sweep_unread import UnreadStore
from service.providers.adapters import adapter
from service.providers.guarded import GuardedProvider
from service.providers.http.transport import Transport
from service.providers.http.webhook_sender import WebhookSender, refusal_of
from service.providers.later import LaterProvider
from service.providers.prober import Prober
from service.resilience.breaker.breaker import NEVER_OPENS, Breaker
from service.resilience.bulkhead import Bulkhead
from service.resilience.deadline import Deadline
from service.resilience.rate_limit import RateLimit
from service.resilience.retry import Retry
from service.resilience.watchdog import Watchdog
from service.settings import Settings, SettingsError, environ_of
from service.web.api.captures import captures_blueprint
from service.web.api.endpoints import webhook_endpoints_blueprint
from service.web.api.events import events_blueprint
from service.web.api.health import health_blueprint
from service.web.api.keys import api_keys_blueprint
from service.web.api.operators import operators_blueprint
from service.web.api.payments import payments_blueprint
from service.web.api.refunds import refunds_blueprint
from service.web.api.webhooks import webhooks_blueprint
from service.web.http import rate_limits, request_scope, same_origin
from service.web.http.auth import Authenticator
from service.web.http.bodies import parse_object, read_body, validated
from service.web.http.problems import register_problems
from service.web.openapi.document import openapi_blueprint
from service.web.ops.console import Instance, console_blueprint, reachable
from service.web.ops.diagnostics import diagnostics_blueprint
from service.web.ops.history import History
from service.web.server import lifecycle

# Threads of each reconciler loop; each thread sends the database one statement at a time.
RECONCILER_THREADS = 8
RECONCILER_POOL_SIZE = 4
OPS_POOL_SIZE = 2
OPS_REQUEST_TIMEOUT_S = 5.0
HEALTH_CHECK_TIMEOUT_S = 2.0

_APPLIED = Statement("applied", migrate.APPLIED_SQL)
_SUITABLE = Statement("suitable", SUITABLE_SQL)
_NOW = Statement("now", "SELECT now()")


@dataclass(frozen=True)
class Parts:
    """The parts of a process that handles payments, from the bottom up."""

    pool: ConnectionPool
    provider: GuardedProvider
    store: PaymentStore
    settling: SettlingStore
    handler: PaymentHandler
    movements: MovementStore
    movement_handler: MovementHandler


def build_parts(
    settings: Settings, *, provider: LaterProvider | None = None, pool_size: int, threads: int
) -> Parts:
    """Build the parts; call it after the fork. At most `threads` wait for the provider at once."""
    watchdog = Watchdog()
    pool = _pool(settings, watchdog, size=pool_size)
    provider_timeout_s = settings.provider_timeout_ms / 1000
    provider = provider or _adapter(settings, watchdog, connections=threads)
    guarded = GuardedProvider(
        provider,
        bulkhead=Bulkhead(limit_max=threads),
        # A file of this instance: the breakers of its workers and its reconciler share one state.
        breaker=Breaker(
            provider.name,
            rules=None if settings.breaker_enabled else NEVER_OPENS,
            page_path=settings.metrics_path / f"breaker-{provider.name}.board",
        ),
        retry=Retry(provider.name),
        timeout_s=provider_timeout_s,
    )
    # Longer than a holder may still work on a payment: its call, then its record.
    lease_s = provider_timeout_s + 2 * RECORD_TIMEOUT_S
    movements = MovementStore(pool, lease_s=lease_s, provider=provider.name)
    store = PaymentStore(pool, lease_s=lease_s, queue_expires_s=settings.queue_expires_s)
    preregister.begin_pool()
    preregister.begin_provider(provider.name)
    return Parts(
        pool=pool,
        provider=guarded,
        store=store,
        settling=SettlingStore(pool, lease_s=lease_s, provider=provider.name),
        handler=PaymentHandler(store, guarded, provider_timeout_s=provider_timeout_s),
        movements=movements,
        movement_handler=MovementHandler(movements, guarded, provider_timeout_s=provider_timeout_s),
    )


def create_app(settings: Settings, *, provider: LaterProvider | None = None) -> Flask:
    """The data plane: /v1, /healthz, /readyz and the OpenAPI document."""
    _send_spans(settings)
    share = settings.provider_concurrency_ratio
    parts = build_parts(
        settings,
        provider=provider,
        pool_size=settings.db_pool_size,
        threads=max(1, round(settings.web_threads * share)),
    )
    # Its host may have no reconciler, and without probes an open breaker would stay open.
    Prober(parts.provider.probe).start()
    app = _flask(settings.request_timeout_ms / 1000)
    spans.trace_requests(app)
    rate_limits.install(app)
    # A file of this instance: its workers count together.
    limit = RateLimit(
        settings.metrics_path / "rate-limits",
        per_s=settings.rate_limit_per_s,
        burst=settings.rate_limit_burst,
    )
    keys = KeyStore(parts.pool)
    authenticate = Authenticator(
        keys,
        rate_limits.RateLimits(limit),
        mode=settings.provider_mode,
        strangers=rate_limits.Strangers(settings.metrics_path),
    )
    secrets = [settings.stripe_webhook_secret] if settings.stripe_webhook_secret else []
    late = LateStore(parts.pool, lease_s=0.0)
    app.register_blueprint(
        payments_blueprint(
            handler=parts.handler,
            store=parts.store,
            late=late,
            authenticate=authenticate,
        )
    )
    app.register_blueprint(
        captures_blueprint(handler=parts.movement_handler, late=late, authenticate=authenticate)
    )
    app.register_blueprint(
        refunds_blueprint(
            handler=parts.movement_handler,
            movements=parts.movements,
            payments=parts.store,
            authenticate=authenticate,
        )
    )
    app.register_blueprint(events_blueprint(feed=EventFeed(parts.pool), authenticate=authenticate))
    app.register_blueprint(
        operators_blueprint(
            store=parts.store, movements=parts.movements, late=late, authenticate=authenticate
        )
    )
    app.register_blueprint(api_keys_blueprint(keys=keys, authenticate=authenticate))
    app.register_blueprint(
        webhook_endpoints_blueprint(
            endpoints=EndpointStore(parts.pool),
            authenticate=authenticate,
            refusal_of=partial(refusal_of, allow_private=settings.webhook_allow_private),
        )
    )
    app.register_blueprint(webhooks_blueprint(inbox=parts.settling, stripe_secrets=secrets))
    app.register_blueprint(
        health_blueprint(
            check_ready=lambda deadline: _missing(parts.pool, deadline),
            is_stopping=lifecycle.is_stopping,
        )
    )
    app.register_blueprint(
        openapi_blueprint(title="Holdfast", version=_version(), address=_address(settings.bind))
    )
    preregister.begin_answers(_routes(app))
    return app


def create_ops_app(settings: Settings) -> Flask:
    """The ops plane: metrics over all workers, health and statistics, on separate threads."""
    watchdog = Watchdog()
    pool = _pool(settings, watchdog, size=OPS_POOL_SIZE)
    provider = _adapter(settings, watchdog, connections=1)
    settling = SettlingStore(pool, lease_s=0.0)
    authenticate = Authenticator(KeyStore(pool), mode=settings.provider_mode)
    registry = shared_registry()
    recent = RecentSamples(lambda: read_samples(registry))
    statistics = Statistics(recent)
    health = HealthChecks(
        [
            check.database(lambda: pool.run(_NOW, {}, _check_deadline()), statistics.report),
            check.provider(lambda: _reach(provider), statistics.report),
            check.reconciler(lambda: settling.last_heartbeat("reconciler", _check_deadline())),
            check.disk(settings.metrics_path),
            check.clock(lambda: pool.run(_NOW, {}, _check_deadline())[0][0]),
            check.workers(settings.web_workers),
        ],
        version=_version(),
        instance=socket.gethostname(),
    )
    metrics.build_info.labels(version=_version()).set(1)
    for slo, target in metrics.SLO_TARGETS.items():
        metrics.slo_target_ratio.labels(slo=slo).set(target)
    health.start()
    statistics.start()
    history = History(recent.reading)
    history.start()
    app = _flask(OPS_REQUEST_TIMEOUT_S)
    same_origin.install(app, _ops_hosts(settings))
    # This plane serves without a database too: an outage is when people need it.
    app.register_blueprint(
        health_blueprint(check_ready=lambda deadline: None, is_stopping=lifecycle.is_stopping)
    )
    app.register_blueprint(
        diagnostics_blueprint(
            registry=registry,
            health=health,
            statistics=statistics,
            require_platform=lambda: authenticate(PLATFORM, request_scope.request_deadline()),
        )
    )
    payments_host, payments_port = reachable(settings.bind)
    app.register_blueprint(
        console_blueprint(
            instance=Instance(
                name=socket.gethostname(),
                version=_version(),
                environment=settings.env,
                payments_host=payments_host,
                payments_port=payments_port,
                has_rehearsals=settings.simulation_enabled,
                test_payment_method=settings.test_payment_method,
            ),
            history=history,
            statistics=statistics,
            health=health,
            store=PaymentStore(pool, lease_s=0.0, queue_expires_s=settings.queue_expires_s),
            authenticate=authenticate,
        )
    )
    drills: tuple[str, ...] = ()
    if settings.simulation_enabled:
        rehearsals, drills = _simulation(
            settings,
            pool,
            provider,
            read=lambda: read_samples(registry),
            statistics=statistics,
            authenticate=authenticate,
        )
        app.register_blueprint(rehearsals)
    app.register_blueprint(
        openapi_blueprint(
            title="Holdfast: operations", version=_version(), address=_address(settings.ops_bind)
        )
    )
    preregister.begin_answers(_routes(app))
    preregister.begin_drills(drills)
    return app


def create_background(settings: Settings) -> Background:
    """The reconciler: look-ups, the queue, the sweep and the figures, each on its schedule."""
    _send_spans(settings)
    # One thread of each loop may wait for the provider; the sweep adds one, late facts add a few.
    parts = build_parts(
        settings,
        pool_size=RECONCILER_POOL_SIZE,
        threads=3 * RECONCILER_THREADS + 1 + LATE_AT_ONCE,
    )
    preregister.begin_settling()
    reconciler = Reconciler(parts.store, parts.settling, parts.handler, parts.provider)
    recovery = Recovery(parts.pool, parts.provider.name)
    # A queued payment may wait, but its lease limits the work: a call, then its record.
    send_timeout_s = settings.provider_timeout_ms / 1000 + RECORD_TIMEOUT_S
    lease_s = settings.provider_timeout_ms / 1000 + 2 * RECORD_TIMEOUT_S
    # A check makes four calls, each within the provider's deadline.
    late_store = LateStore(parts.pool, lease_s=4 * lease_s, provider=parts.provider.name)
    late = LateFacts(parts.store, late_store, parts.movements, parts.settling, parts.provider)
    runs = SweepRuns(parts.pool, parts.provider.name)
    return Background(
        pool=parts.pool,
        settling=parts.settling,
        reconciler=reconciler,
        forwarder=Forwarder(
            parts.store,
            parts.settling,
            parts.handler,
            parts.provider,
            send_timeout_s=send_timeout_s,
            batch_max=RECONCILER_THREADS,
            is_recovering=recovery.is_recovering,
        ),
        movements=parts.movements,
        movement_reconciler=MovementReconciler(
            parts.movements, parts.movement_handler, parts.provider
        ),
        deliverer=Deliverer(
            parts.pool,
            WebhookSender(
                watchdog=parts.pool.watchdog,
                allow_private=settings.webhook_allow_private,
                ca_file=settings.webhook_ca_file,
            ),
            timeout_s=settings.webhook_timeout_ms / 1000,
        ),
        open_limit=OpenLimit(parts.pool, most=settings.open_payments_max),
        retention=Retention(
            parts.pool,
            parts.settling,
            Kept(
                inbox_days=settings.keep_inbox_days,
                outbox_days=settings.keep_outbox_days,
                drills_days=settings.keep_drills_days,
                keys_days=settings.keep_keys_days,
            ),
        ),
        sweep=Sweep(
            parts.store,
            parts.settling,
            late,
            late_store,
            runs,
            UnreadStore(parts.pool, parts.provider.name),
            parts.provider,
            foreign_charges=settings.foreign_charges,
            first_back=timedelta(days=settings.sweep_first_days),
        ),
        late=late,
        late_store=late_store,
        figures=OpenFigures(parts.settling, late_store, runs),
        recovery=recovery,
        invariants=InvariantChecks(parts.pool, parts.settling),
        probe=parts.provider.probe,
        send_timeout_s=send_timeout_s,
        threads=RECONCILER_THREADS,
    )


def _send_spans(settings: Settings) -> None:
    """Start tracing if OTEL_EXPORTER_OTLP_ENDPOINT is set; call before the pool connects."""
    spans.enable(version=_version(), environment=settings.env, instance=socket.gethostname())


def _routes(app: Flask) -> list[tuple[str, str]]:
    """Every route template of the plane, with each of its methods."""
    implied = {"HEAD", "OPTIONS"}
    return [
        (rule.rule, method)
        for rule in app.url_map.iter_rules()
        for method in (rule.methods or set()) - implied
    ]


def _simulation(
    settings: Settings,
    pool: ConnectionPool,
    provider: LaterProvider,
    *,
    read: Callable[[], Mapping[SampleKey, float]],
    statistics: Statistics,
    authenticate: Authenticator,
) -> tuple[Blueprint, tuple[str, ...]]:
    """Simulations and drills, with the drills' names: imported here only, and only when enabled."""
    try:
        from service.lab.drills import assembly, plan, routes
    except ModuleNotFoundError as error:
        if error.name != "service.lab":
            raise
        raise SettingsError(
            "HOLDFAST_SIMULATION_ENABLED needs service.lab, which this installation leaves out:"
            " turn it off, or build the image with --build-arg LAB=1."
        ) from error
    host, port = reachable(settings.bind)
    try:
        catalogue = plan.read_catalogue(settings.drills_dir)
    except ValueError as error:
        raise SettingsError(f"HOLDFAST_DRILLS_DIR: {error}.") from error
    rehearsals = assembly.assemble(
        catalogue=catalogue,
        pool=pool,
        keys=KeyStore(pool),
        list_charges=provider.list_since,
        read=read,
        statistics=statistics.report,
        data_plane_url=f"http://{host}:{port}",
        database_url=settings.database_url or "",
        provider_url=settings.stripe_api_base or "https://api.stripe.com",
        provider_key=settings.stripe_api_key or "",
        provider_ca_file=settings.provider_ca_file,
        webhook_secret=settings.stripe_webhook_secret,
        control_path=settings.fault_proxy_control,
        instance_allowed=settings.env != "production" or settings.simulation_instance,
        home=settings.home,
        root=Path(__file__).resolve().parents[2],
        environ=environ_of(settings, os.environ),
    )
    blueprint = routes.simulation_blueprint(
        rehearsals,
        require_platform=lambda: authenticate(PLATFORM, request_scope.request_deadline()).actor(),
        read_body=lambda model: validated(model, parse_object(read_body() or b"{}")),
    )
    return blueprint, tuple(catalogue)


def _ops_hosts(settings: Settings) -> frozenset[str]:
    """The names by which people may reach the ops plane."""
    names = {name.strip().lower() for name in (settings.ops_hosts or "").split(",")} - {""}
    own, _ = reachable(settings.ops_bind)
    return frozenset({*names, own, "localhost", "127.0.0.1", "::1"})


def _flask(request_timeout_s: float) -> Flask:
    app = Flask("service", static_folder=None)
    request_scope.install(app, request_timeout_s=request_timeout_s)
    register_problems(app)
    return app


def _pool(settings: Settings, watchdog: Watchdog, *, size: int) -> ConnectionPool:
    return ConnectionPool(
        settings.database_url or "",
        size=size,
        wait_s=settings.db_pool_wait_ms / 1000,
        max_waiters=settings.db_pool_waiters,
        watchdog=watchdog,
        prepared=settings.db_prepared,
    )


def _adapter(settings: Settings, watchdog: Watchdog, *, connections: int) -> LaterProvider:
    transport = Transport(
        base_url=settings.stripe_api_base or "https://api.stripe.com",
        ca_file=settings.provider_ca_file,
        connect_timeout_s=settings.provider_connect_timeout_ms / 1000,
        max_connections=connections,
        watchdog=watchdog,
        proxy_url=settings.provider_proxy_url,
    )
    return adapter(
        settings.provider,
        transport,
        api_key=settings.stripe_api_key or "",
        flow=settings.provider_flow,
    )


def _missing(pool: ConnectionPool, deadline: Deadline) -> str | None:
    """The reason why payments cannot be stored here, or None."""
    ((encoding, is_found),) = pool.run(_SUITABLE, {}, deadline)
    if encoding != ENCODING:
        return "database_encoding"
    if not is_found:
        return "migrations_pending"
    applied = migrate.applied_version([(row[0],) for row in pool.run(_APPLIED, {}, deadline)])
    if applied < migrate.latest_version():
        return "migrations_pending"
    return None


def _reach(provider: LaterProvider) -> None:
    """Request an empty list: it moves no money and raises Busy without an answer."""
    next(provider.list_since(datetime.now(UTC), _check_deadline()), None)


def _check_deadline() -> Deadline:
    return Deadline.after(HEALTH_CHECK_TIMEOUT_S)


def _address(bind: str) -> str:
    """The address at which this machine reaches the listener on `bind`."""
    host, port = reachable(bind)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _version() -> str:
    try:
        return version("holdfast")
    except PackageNotFoundError:
        return "checkout"  # Started from the source, not installed.
