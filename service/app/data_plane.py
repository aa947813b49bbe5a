"""The data plane: one application for each gunicorn worker."""

from __future__ import annotations

from functools import partial

from flask import Flask

from service.app.parts import (
    Parts,
    address_of,
    build_parts,
    routes_of,
    send_spans,
    web_app,
)
from service.database.migrate import runner as migrate
from service.database.migrate.requirements import ENCODING, SUITABLE_SQL
from service.database.pool.pool import ConnectionPool, Statement
from service.observability import spans
from service.observability.metrics import preregister
from service.payments.events.endpoints import EndpointStore
from service.payments.events.feed import EventFeed
from service.payments.merchants import KeyStore
from service.payments.settling.inbox import WebhookInbox
from service.payments.settling.late_store import LateStore
from service.providers.http.webhook_sender import refusal_of
from service.providers.later import LaterProvider
from service.providers.prober import Prober
from service.resilience.deadline import Deadline
from service.resilience.rate_limit import RateLimit
from service.settings import Settings
from service.version import VERSION
from service.web.api import (
    captures,
    endpoints,
    events,
    health,
    keys,
    operators,
    payments,
    refunds,
    webhooks,
)
from service.web.api.health import Readiness
from service.web.api.plane import DataPlane
from service.web.http import rate_limits
from service.web.http.auth import Authenticator
from service.web.http.parts import put_parts
from service.web.http.preferences import Waiting
from service.web.openapi import document
from service.web.server import lifecycle

_APPLIED = Statement("applied", migrate.APPLIED_SQL)
_SUITABLE = Statement("suitable", SUITABLE_SQL)

_BLUEPRINTS = (
    payments.blueprint,
    captures.blueprint,
    refunds.blueprint,
    events.blueprint,
    operators.blueprint,
    keys.blueprint,
    endpoints.blueprint,
    webhooks.blueprint,
    health.blueprint,
    document.blueprint,
)


def create_app(settings: Settings, *, provider: LaterProvider | None = None) -> Flask:
    """The data plane: /v1, /healthz, /readyz and the OpenAPI document."""
    send_spans(settings)
    share = settings.provider_concurrency_ratio
    parts = build_parts(
        settings,
        provider=provider,
        pool_size=settings.db_pool_size,
        threads=max(1, round(settings.web_threads * share)),
    )
    # Its host may have no reconciler, and without probes an open breaker would stay open.
    Prober(parts.provider.probe).start()
    app = web_app(settings.request_timeout_ms / 1000)
    spans.trace_requests(app)
    rate_limits.install(app)
    put_parts(app, _data_plane(settings, parts))
    put_parts(app, Readiness(partial(_missing, parts.pool), is_stopping=lifecycle.is_stopping))
    put_parts(
        app,
        document.Description(title="Holdfast", version=VERSION, address=address_of(settings.bind)),
    )
    for blueprint in _BLUEPRINTS:
        app.register_blueprint(blueprint)
    preregister.begin_answers(routes_of(app))
    return app


def _data_plane(settings: Settings, parts: Parts) -> DataPlane:
    key_store = KeyStore(parts.pool)
    return DataPlane(
        authenticate=_authenticator(settings, key_store),
        handler=parts.handler,
        store=parts.store,
        waiting=Waiting(waiters=payments.WAITERS),
        late=LateStore(parts.pool, lease_s=0.0),
        movement_handler=parts.movement_handler,
        movements=parts.movements,
        feed=EventFeed(parts.pool),
        keys=key_store,
        endpoints=EndpointStore(parts.pool),
        refusal_of=partial(refusal_of, allow_private=settings.webhook_allow_private),
        inbox=WebhookInbox(parts.pool),
        stripe_secrets=[settings.stripe_webhook_secret] if settings.stripe_webhook_secret else [],
    )


def _authenticator(settings: Settings, key_store: KeyStore) -> Authenticator:
    # A file of this instance: its workers count together.
    limit = RateLimit(
        settings.metrics_path / "rate-limits",
        per_s=settings.rate_limit_per_s,
        burst=settings.rate_limit_burst,
    )
    return Authenticator(
        key_store,
        rate_limits.RateLimits(limit),
        mode=settings.provider_mode,
        strangers=rate_limits.Strangers(settings.metrics_path),
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
