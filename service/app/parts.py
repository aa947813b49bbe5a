"""Builds the parts that several processes have, each once in a process."""

from __future__ import annotations

import socket
from dataclasses import dataclass

from flask import Flask

from service.database.pool.pool import ConnectionPool
from service.observability import spans
from service.observability.metrics import preregister
from service.payments.charge.handler import PaymentHandler
from service.payments.charge.store import RECORD_TIMEOUT_S, PaymentStore
from service.payments.movements.handler import MovementHandler
from service.payments.movements.store import MovementStore
from service.payments.settling.lease_store import LeaseStore
from service.providers.adapters import adapter
from service.providers.guarded import GuardedProvider
from service.providers.http.transport import Transport
from service.providers.later import LaterProvider
from service.resilience.breaker.breaker import Breaker
from service.resilience.breaker.rules import NEVER_OPENS
from service.resilience.bulkhead import Bulkhead
from service.resilience.retry import Retry
from service.resilience.watchdog import Watchdog
from service.settings import Settings, reachable
from service.version import VERSION
from service.web.http import request_scope
from service.web.http.problems import register_problems


@dataclass(frozen=True)
class Parts:
    """The parts of a process that handles payments, from the bottom up."""

    pool: ConnectionPool
    provider: GuardedProvider
    store: PaymentStore
    leases: LeaseStore
    handler: PaymentHandler
    movements: MovementStore
    movement_handler: MovementHandler


def build_parts(
    settings: Settings, *, provider: LaterProvider | None = None, pool_size: int, threads: int
) -> Parts:
    """Build the parts; call it after the fork. At most `threads` wait for the provider at once."""
    watchdog = Watchdog()
    pool = pool_of(settings, watchdog, size=pool_size)
    provider_timeout_s = settings.provider_timeout_ms / 1000
    provider = provider or adapter_of(settings, watchdog, connections=threads)
    guarded = GuardedProvider(
        provider,
        bulkhead=Bulkhead(limit_max=threads),
        # A file of this instance: the breakers of its workers and its reconciler share one state.
        breaker=Breaker(
            provider.name,
            rules=None if settings.breaker_enabled else NEVER_OPENS,
            page_path=settings.metrics_path / f"breaker-{provider.name}.state",
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
        leases=LeaseStore(pool, lease_s=lease_s, provider=provider.name),
        handler=PaymentHandler(store, guarded, provider_timeout_s=provider_timeout_s),
        movements=movements,
        movement_handler=MovementHandler(movements, guarded, provider_timeout_s=provider_timeout_s),
    )


def pool_of(settings: Settings, watchdog: Watchdog, *, size: int) -> ConnectionPool:
    return ConnectionPool(
        settings.database_url or "",
        size=size,
        wait_s=settings.db_pool_wait_ms / 1000,
        max_waiters=settings.db_pool_waiters,
        watchdog=watchdog,
        prepared=settings.db_prepared,
    )


def adapter_of(settings: Settings, watchdog: Watchdog, *, connections: int) -> LaterProvider:
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


def web_app(request_timeout_s: float) -> Flask:
    app = Flask("service", static_folder=None)
    request_scope.install(app, request_timeout_s=request_timeout_s)
    register_problems(app)
    return app


def routes_of(app: Flask) -> list[tuple[str, str]]:
    """Every route template of the plane, with each of its methods."""
    implied = {"HEAD", "OPTIONS"}
    return [
        (rule.rule, method)
        for rule in app.url_map.iter_rules()
        for method in (rule.methods or set()) - implied
    ]


def send_spans(settings: Settings) -> None:
    """Start tracing if OTEL_EXPORTER_OTLP_ENDPOINT is set; call before the pool connects."""
    spans.enable(version=VERSION, environment=settings.env, instance=socket.gethostname())


def address_of(bind: str) -> str:
    """The address at which this machine reaches the listener on `bind`."""
    host, port = reachable(bind)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
