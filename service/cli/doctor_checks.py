"""The doctor's checks: of the settings and the provider, then of the database and the rows in it."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import partial
from time import monotonic

from service.cli import local
from service.database.migrate.partitions import STATE_SQL
from service.database.migrate.requirements import ENCODING
from service.database.migrate.role_settings import DURABLE, RELIED_ON
from service.database.migrate.runner import MigrationError, pending
from service.database.pool.pool import ConnectionPool, Statement
from service.errors import HoldfastError
from service.observability.checks import (
    CLOCK_APART_S,
    DATABASE_ROUND_TRIP_WARN_MS,
    HEARTBEAT_AGE_S,
    CheckResult,
    ServiceCheck,
)
from service.payments.events.endpoints import EndpointStore
from service.payments.merchants import KeyStore
from service.payments.settling.figures import open_figures
from service.payments.settling.invariants import try_invariants
from service.payments.settling.run_locks import RunLocks
from service.providers.adapters import adapter
from service.providers.http.transport import Transport
from service.resilience.deadline import Deadline
from service.resilience.watchdog import Watchdog
from service.settings import Settings, SettingsError
from service.startup.database import require_headroom

# The shortest round trip shows the distance; longer ones show the load of this machine.
ROUND_TRIPS = 5
PROVIDER_TIMEOUT_S = 5.0
# The checks after it read tables that only a migrated database has.
MIGRATIONS = "migrations"


def of_settings(settings: Settings) -> list[ServiceCheck]:
    """The checks that need no database."""
    return [
        ServiceCheck("settings", "system", partial(_settings, settings)),
        ServiceCheck("provider", "component", partial(_provider, settings)),
    ]


def of_database(pool: ConnectionPool, settings: Settings) -> list[ServiceCheck]:
    """The checks of the database, and of the rows in it; their order is that of their needs."""
    return [
        ServiceCheck("database", "datastore", partial(_database, pool)),
        ServiceCheck("database settings", "datastore", partial(_database_settings, pool)),
        ServiceCheck("clock", "system", partial(_clock, pool)),
        ServiceCheck("pool budget", "datastore", partial(_headroom, settings)),
        ServiceCheck(MIGRATIONS, "datastore", partial(_migrations, settings)),
        ServiceCheck("api keys", "component", partial(_keys, pool, settings)),
        ServiceCheck("reconciler", "component", partial(_reconciler, pool)),
        ServiceCheck("money", "component", partial(_money, pool)),
        ServiceCheck("webhooks out", "component", partial(_webhooks_out, pool)),
        ServiceCheck("event months", "datastore", partial(_partitions, pool)),
    ]


def _settings(settings: Settings) -> CheckResult:
    missing = [
        name
        for name, value in (
            ("STRIPE_API_KEY", settings.stripe_api_key),
            ("STRIPE_WEBHOOK_SECRET", settings.stripe_webhook_secret),
        )
        if value is None
    ]
    is_local = (settings.home / "run.json").exists()
    if missing and not is_local:
        todo = "Without the key no payment is charged; without the secret each webhook is refused."
        return CheckResult("warn", f"{' and '.join(missing)} not set", todo=todo)
    where = f"the local run in {settings.home}" if is_local else settings.env
    return CheckResult("pass", f"sound, for {where}")


def _provider(settings: Settings) -> CheckResult:
    """Ask for an empty list: the request moves no money."""
    base_url = settings.stripe_api_base or "https://api.stripe.com"
    if settings.stripe_api_key is None:
        return CheckResult("fail", "STRIPE_API_KEY is not set", todo="Set it, or ..._FILE.")
    transport = Transport(
        base_url=base_url,
        ca_file=settings.provider_ca_file,
        connect_timeout_s=settings.provider_connect_timeout_ms / 1000,
        max_connections=1,
        watchdog=Watchdog(),
        proxy_url=settings.provider_proxy_url,
    )
    provider = adapter(
        settings.provider, transport, api_key=settings.stripe_api_key, flow=settings.provider_flow
    )
    began_s = monotonic()
    try:
        next(provider.list_since(datetime.now(UTC), Deadline.after(PROVIDER_TIMEOUT_S)), None)
    except (HoldfastError, OSError, ValueError) as error:
        todo = "Check its address (STRIPE_API_BASE), the network's egress rules, and the key."
        return CheckResult("fail", f"{base_url}: {error}", todo=todo)
    finally:
        transport.close()
    found = f"{settings.provider} at {base_url} answers in {_ms_since(began_s)} ms"
    return CheckResult("pass", found)


def _database(pool: ConnectionPool) -> CheckResult:
    version = Statement("doctor_version", "SHOW server_version")
    pool.run(version, {}, local.soon())  # The first statement opens the connection.
    trips_ms = []
    for _ in range(ROUND_TRIPS):
        began_s = monotonic()
        ((number,),) = pool.run(version, {}, local.soon())
        trips_ms.append(_ms_since(began_s))
    took_ms = min(trips_ms)
    found = f"PostgreSQL {number} answers in {took_ms} ms"
    if took_ms > DATABASE_ROUND_TRIP_WARN_MS:
        todo = "Each payment waits for two or three round trips: move the service closer to it."
        return CheckResult("warn", found, todo=todo)
    return CheckResult("pass", found)


def _database_settings(pool: ConnectionPool) -> CheckResult:
    """The encoding, and the default settings of our role's sessions."""
    names = ("server_encoding", "synchronous_commit", *RELIED_ON)
    asked = ", ".join(f"current_setting('{name}')" for name in names)
    ((encoding, durability, *values),) = pool.run(
        Statement("doctor_settings", f"SELECT {asked}"), {}, local.soon()
    )
    if encoding != ENCODING:
        todo = f"Create a database with ENCODING '{ENCODING}' TEMPLATE template0, and migrate it."
        return CheckResult("fail", f"encoded in {encoding}", todo=todo)
    if durability not in DURABLE:
        todo = "Set it to on for this role: an acknowledged payment could be lost in a crash."
        return CheckResult("fail", f"synchronous_commit is {durability}", todo=todo)
    wrong = [
        f"{name} is {value}"
        for (name, wanted), value in zip(RELIED_ON.items(), values, strict=True)
        if value != wanted
    ]
    if wrong:
        todo = "Run `python -m service migrate` as an owner with the right to alter this role."
        return CheckResult("warn", ", ".join(wrong), todo=todo)
    return CheckResult("pass", f"{encoding}, commits are durable")


def _migrations(settings: Settings) -> CheckResult:
    try:
        missing = pending(settings.database_url or "")
    except MigrationError as error:
        return CheckResult("fail", str(error), todo="Set DATABASE_URL to another database.")
    if missing:
        found, todo = f"missing: {', '.join(missing)}", "Run `python -m service migrate`."
        return CheckResult("fail", found, todo=todo)
    return CheckResult("pass", "all applied")


def _headroom(settings: Settings) -> CheckResult:
    try:
        require_headroom(settings)
    except SettingsError as error:
        return CheckResult("fail", "the pools do not fit the server", todo=str(error))
    size = settings.web_workers * settings.db_pool_size
    return CheckResult("pass", f"{size} connections for the workers fit the server")


def _clock(pool: ConnectionPool) -> CheckResult:
    ((theirs,),) = pool.run(Statement("now", "SELECT now()"), {}, local.soon())
    apart_s = abs((datetime.now(UTC) - theirs).total_seconds())
    found = f"{apart_s:.1f} s from the database's"
    status = CLOCK_APART_S.status(apart_s)
    todo = "Synchronise both (NTP): webhook signatures are refused when clocks are apart."
    return CheckResult(status, found, todo="" if status == "pass" else todo)


def _keys(pool: ConnectionPool, settings: Settings) -> CheckResult:
    """Keys of the other mode are refused at each call: their owners should know in advance."""
    mode = settings.provider_mode
    by_mode = KeyStore(pool).live_by_mode(local.soon())
    total, refused = sum(by_mode.values()), 0
    if mode is not None:
        refused = total - by_mode.get(mode, 0)
    if refused:
        todo = f"Replace them: python -m service keys make --mode {mode}."
        found = f"{refused} of {total} live keys are not of the provider's mode, {mode}"
        return CheckResult("warn", found, todo=todo)
    return CheckResult("pass", f"{total} live, of the provider's mode")


def _reconciler(pool: ConnectionPool) -> CheckResult:
    last = RunLocks(pool).last_heartbeat("reconciler", local.soon())
    age_s = None if last is None else (datetime.now(UTC) - last).total_seconds()
    status = "fail" if age_s is None else HEARTBEAT_AGE_S.status(age_s)
    if age_s is not None and status == "pass":
        return CheckResult("pass", f"last heartbeat {max(0.0, age_s):.0f} s ago")
    found = "never ran here" if age_s is None else f"no heartbeat for {age_s:.0f} s"
    todo = "Start `python -m service reconcile`: only it settles payments in doubt or queued."
    return CheckResult(status, found, todo=todo)


def _money(pool: ConnectionPool) -> CheckResult:
    found_rows = try_invariants(pool, local.soon())
    broken = [rule for rule, rows in found_rows.items() if rows]
    if broken:
        todo = "See docs/runbooks/InvariantViolated.md, now."
        return CheckResult("fail", f"broken promise: {', '.join(broken)}", todo=todo)
    if unchecked := [rule for rule, rows in found_rows.items() if rows is None]:
        todo = "An unchecked rule proves nothing: see docs/runbooks/InvariantsNotChecked.md."
        return CheckResult("warn", f"not checked: {', '.join(unchecked)}", todo=todo)
    counts: dict[str, int] = {}
    for figure in open_figures(pool, local.soon()):
        counts[figure.status] = counts.get(figure.status, 0) + figure.count
    found = ", ".join(f"{n} {status}" for status, n in sorted(counts.items())) or "nothing open"
    if counts.get("needs_review"):
        todo = "`python -m service payments list --status needs_review`, then `payments resolve`."
        return CheckResult("warn", found, todo=todo)
    return CheckResult("pass", found)


def _webhooks_out(pool: ConnectionPool) -> CheckResult:
    paused, failing = EndpointStore(pool).troubled(local.soon())
    if paused or failing:
        found = f"{failing} endpoints fail, {paused} were paused for it"
        todo = "Inform their owners: GET /v1/webhook_endpoints shows since when and why."
        return CheckResult("warn", found, todo=todo)
    return CheckResult("pass", "no endpoint fails")


def _partitions(pool: ConnectionPool) -> CheckResult:
    ((missing, has_strays),) = pool.run(Statement("due_partitions", STATE_SQL), {}, local.soon())
    todo = "Run `python -m service retain` as the owner, each night: docs/retention.md."
    if missing:
        found = f"{missing} of the months from now on have no partition"
        return CheckResult("warn", found, todo=todo)
    if has_strays:
        return CheckResult("warn", "the default partition holds events", todo=todo)
    return CheckResult("pass", "made ahead")


def _ms_since(began_s: float) -> float:
    return round((monotonic() - began_s) * 1000, 1)
