"""The data plane: one application for each gunicorn worker."""

from __future__ import annotations

from functools import partial

from flask import Flask

from service.app.parts import (
    address_of,
    build_parts,
    own_version,
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
from service.payments.settling.late_store import LateStore
from service.providers.http.webhook_sender import refusal_of
from service.providers.later import LaterProvider
from service.providers.prober import Prober
from service.resilience.deadline import Deadline
from service.resilience.rate_limit import RateLimit
from service.settings import Settings
from service.web.api import health
from service.web.api.captures import captures_blueprint
from service.web.api.endpoints import webhook_endpoints_blueprint
from service.web.api.events import events_blueprint
from service.web.api.health import Readiness
from service.web.api.keys import api_keys_blueprint
from service.web.api.operators import operators_blueprint
from service.web.api.payments import payments_blueprint
from service.web.api.refunds import refunds_blueprint
from service.web.api.webhooks import webhooks_blueprint
from service.web.http import rate_limits
from service.web.http.auth import Authenticator
from service.web.http.parts import put_parts
from service.web.openapi import document
from service.web.server import lifecycle

_APPLIED = Statement("applied", migrate.APPLIED_SQL)
_SUITABLE = Statement("suitable", SUITABLE_SQL)


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
    put_parts(app, Readiness(partial(_missing, parts.pool), is_stopping=lifecycle.is_stopping))
    app.register_blueprint(health.blueprint)
    put_parts(
        app,
        document.Description(
            title="Holdfast", version=own_version(), address=address_of(settings.bind)
        ),
    )
    app.register_blueprint(document.blueprint)
    preregister.begin_answers(routes_of(app))
    return app


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
