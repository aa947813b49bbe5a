"""Check settings, database, migrations, provider, pools, clock and backlog, and suggest repairs.

Status 1 when a check fails; warnings alone give status 0. The checks change no data and no money.

example:
  python -m service doctor
  python -m service doctor --json | jq '.[] | select(.state != "pass")'
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from time import monotonic
from typing import TYPE_CHECKING, Literal

from service.cli import local
from service.cli.table import print_json, print_rows
from service.errors import HoldfastError
from service.settings import Settings, SettingsError

if TYPE_CHECKING:
    from service.database.pool.pool import ConnectionPool

# Webhook signatures are refused from 300 s on; NTP keeps clocks well within a second.
CLOCK_WARN_S, CLOCK_FAIL_S = 2.0, 60.0
# The reconciler writes a heartbeat every 5 s.
HEARTBEAT_FAIL_S = 30.0
# Every payment waits for two or three round trips.
ROUND_TRIP_WARN_MS = 20.0
# The shortest round trip shows the distance; longer ones show the load of this machine.
ROUND_TRIPS = 5
PROVIDER_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class DoctorResult:
    """The result of one check; `todo` is empty where no action is needed."""

    check: str
    state: Literal["pass", "warn", "fail"]
    found: str
    todo: str = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    local.add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    results = list(_examine())
    if arguments.json:
        print_json([asdict(result) for result in results])
    else:
        print_rows([asdict(result) for result in results], ("check", "state", "found"))
        for result in results:
            if result.todo:
                print(f"\n{result.check}: {result.todo}")
    return 1 if any(result.state == "fail" for result in results) else 0


def _examine() -> Iterator[DoctorResult]:
    try:
        settings = local.settings_here()
    except SettingsError as error:
        yield DoctorResult(
            "settings", "fail", str(error), "Correct the setting; .env.example describes each one."
        )
        return
    yield _settings(settings)
    yield _provider(settings)
    if settings.database_url is None:
        todo = "Set DATABASE_URL, or start a local run: python -m service."
        yield DoctorResult("database", "fail", "not configured, and no local run was found", todo)
        return
    try:
        with local.database(settings) as pool:
            yield _database(pool)
            yield _database_settings(pool)
            yield _clock(pool)
            yield _headroom(settings)
            migrated = _migrations(settings)
            yield migrated
            # The other checks read tables that only a migrated database has.
            if migrated.state == "pass":
                yield _keys(pool, settings)
                for ask in (_reconciler, _money, _webhooks_out, _partitions):
                    yield ask(pool)
    except SystemExit as refused:
        todo = "Is it running, and does DATABASE_URL name it? All other checks need it."
        yield DoctorResult("database", "fail", str(refused), todo)


def _settings(settings: Settings) -> DoctorResult:
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
        return DoctorResult("settings", "warn", f"{' and '.join(missing)} not set", todo)
    where = f"the local run in {settings.home}" if is_local else settings.env
    return DoctorResult("settings", "pass", f"sound, for {where}")


def _provider(settings: Settings) -> DoctorResult:
    """Ask for an empty list: the request moves no money."""
    from service.providers.adapters import adapter
    from service.providers.http.transport import Transport
    from service.resilience.deadline import Deadline
    from service.resilience.watchdog import Watchdog

    base_url = settings.stripe_api_base or "https://api.stripe.com"
    if settings.stripe_api_key is None:
        return DoctorResult("provider", "fail", "STRIPE_API_KEY is not set", "Set it, or ..._FILE.")
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
        return DoctorResult("provider", "fail", f"{base_url}: {error}", todo)
    finally:
        transport.close()
    found = f"{settings.provider} at {base_url} answers in {_ms_since(began_s)} ms"
    return DoctorResult("provider", "pass", found)


def _database(pool: ConnectionPool) -> DoctorResult:
    from service.database.pool.pool import Statement

    version = Statement("doctor_version", "SHOW server_version")
    pool.run(version, {}, local.soon())  # The first statement opens the connection.
    trips_ms = []
    for _ in range(ROUND_TRIPS):
        began_s = monotonic()
        ((number,),) = pool.run(version, {}, local.soon())
        trips_ms.append(_ms_since(began_s))
    took_ms = min(trips_ms)
    found = f"PostgreSQL {number} answers in {took_ms} ms"
    if took_ms > ROUND_TRIP_WARN_MS:
        todo = "Each payment waits for two or three round trips: move the service closer to it."
        return DoctorResult("database", "warn", found, todo)
    return DoctorResult("database", "pass", found)


def _database_settings(pool: ConnectionPool) -> DoctorResult:
    """The encoding, and the default settings of our role's sessions."""
    from service.database.migrate.requirements import ENCODING
    from service.database.migrate.role_settings import DURABLE, RELIED_ON
    from service.database.pool.pool import Statement

    names = ("server_encoding", "synchronous_commit", *RELIED_ON)
    asked = ", ".join(f"current_setting('{name}')" for name in names)
    ((encoding, durability, *values),) = pool.run(
        Statement("doctor_settings", f"SELECT {asked}"), {}, local.soon()
    )
    if encoding != ENCODING:
        todo = f"Create a database with ENCODING '{ENCODING}' TEMPLATE template0, and migrate it."
        return DoctorResult("database settings", "fail", f"encoded in {encoding}", todo)
    if durability not in DURABLE:
        todo = "Set it to on for this role: an acknowledged payment could be lost in a crash."
        return DoctorResult(
            "database settings", "fail", f"synchronous_commit is {durability}", todo
        )
    wrong = [
        f"{name} is {value}"
        for (name, wanted), value in zip(RELIED_ON.items(), values, strict=True)
        if value != wanted
    ]
    if wrong:
        todo = "Run `python -m service migrate` as an owner with the right to alter this role."
        return DoctorResult("database settings", "warn", ", ".join(wrong), todo)
    return DoctorResult("database settings", "pass", f"{encoding}, commits are durable")


def _migrations(settings: Settings) -> DoctorResult:
    from service.database.migrate.runner import MigrationError, pending

    try:
        missing = pending(settings.database_url or "")
    except MigrationError as error:
        return DoctorResult(
            "migrations", "fail", str(error), "Set DATABASE_URL to another database."
        )
    if missing:
        found, todo = f"missing: {', '.join(missing)}", "Run `python -m service migrate`."
        return DoctorResult("migrations", "fail", found, todo)
    return DoctorResult("migrations", "pass", "all applied")


def _headroom(settings: Settings) -> DoctorResult:
    from service.startup.database import require_headroom

    try:
        require_headroom(settings)
    except SettingsError as error:
        return DoctorResult("pool budget", "fail", "the pools do not fit the server", str(error))
    size = settings.web_workers * settings.db_pool_size
    return DoctorResult("pool budget", "pass", f"{size} connections for the workers fit the server")


def _clock(pool: ConnectionPool) -> DoctorResult:
    from service.database.pool.pool import Statement

    ((theirs,),) = pool.run(Statement("now", "SELECT now()"), {}, local.soon())
    apart_s = abs((datetime.now(UTC) - theirs).total_seconds())
    found = f"{apart_s:.1f} s from the database's"
    if apart_s < CLOCK_WARN_S:
        return DoctorResult("clock", "pass", found)
    todo = "Synchronise both (NTP): webhook signatures are refused when clocks are apart."
    return DoctorResult("clock", "fail" if apart_s > CLOCK_FAIL_S else "warn", found, todo)


def _keys(pool: ConnectionPool, settings: Settings) -> DoctorResult:
    """Keys of the other mode are refused at each call: their owners should know in advance."""
    from service.payments.merchants import KeyStore

    mode = settings.provider_mode
    by_mode = KeyStore(pool).live_by_mode(local.soon())
    total, refused = sum(by_mode.values()), 0
    if mode is not None:
        refused = total - by_mode.get(mode, 0)
    if refused:
        todo = f"Replace them: python -m service keys make --mode {mode}."
        found = f"{refused} of {total} live keys are not of the provider's mode, {mode}"
        return DoctorResult("api keys", "warn", found, todo)
    return DoctorResult("api keys", "pass", f"{total} live, of the provider's mode")


def _reconciler(pool: ConnectionPool) -> DoctorResult:
    from service.payments.settling.store import SettlingStore

    last = SettlingStore(pool, lease_s=0.0).last_heartbeat("reconciler", local.soon())
    age_s = None if last is None else (datetime.now(UTC) - last).total_seconds()
    if age_s is not None and age_s < HEARTBEAT_FAIL_S:
        return DoctorResult("reconciler", "pass", f"last heartbeat {max(0.0, age_s):.0f} s ago")
    found = "never ran here" if age_s is None else f"no heartbeat for {age_s:.0f} s"
    todo = "Start `python -m service reconcile`: only it settles payments in doubt or queued."
    return DoctorResult("reconciler", "fail", found, todo)


def _money(pool: ConnectionPool) -> DoctorResult:
    from service.payments.settling.invariants import try_invariants
    from service.payments.settling.store import SettlingStore

    found_rows = try_invariants(pool, local.soon())
    broken = [rule for rule, rows in found_rows.items() if rows]
    if broken:
        todo = "See docs/runbooks/InvariantViolated.md, now."
        return DoctorResult("money", "fail", f"broken promise: {', '.join(broken)}", todo)
    if unchecked := [rule for rule, rows in found_rows.items() if rows is None]:
        todo = "An unchecked rule proves nothing: see docs/runbooks/InvariantsNotChecked.md."
        return DoctorResult("money", "warn", f"not checked: {', '.join(unchecked)}", todo)
    counts: dict[str, int] = {}
    for figure in SettlingStore(pool, lease_s=0.0).open_figures(local.soon()):
        counts[figure.status] = counts.get(figure.status, 0) + figure.count
    found = ", ".join(f"{n} {status}" for status, n in sorted(counts.items())) or "nothing open"
    if counts.get("needs_review"):
        todo = "`python -m service payments list --status needs_review`, then `payments resolve`."
        return DoctorResult("money", "warn", found, todo)
    return DoctorResult("money", "pass", found)


def _webhooks_out(pool: ConnectionPool) -> DoctorResult:
    from service.payments.events.endpoints import EndpointStore

    paused, failing = EndpointStore(pool).troubled(local.soon())
    if paused or failing:
        found = f"{failing} endpoints fail, {paused} were paused for it"
        todo = "Inform their owners: GET /v1/webhook_endpoints shows since when and why."
        return DoctorResult("webhooks out", "warn", found, todo)
    return DoctorResult("webhooks out", "pass", "no endpoint fails")


def _partitions(pool: ConnectionPool) -> DoctorResult:
    from service.database.migrate.partitions import STATE_SQL
    from service.database.pool.pool import Statement

    ((missing, has_strays),) = pool.run(Statement("due_partitions", STATE_SQL), {}, local.soon())
    todo = "Run `python -m service retain` as the owner, each night: docs/retention.md."
    if missing:
        found = f"{missing} of the months from now on have no partition"
        return DoctorResult("event months", "warn", found, todo)
    if has_strays:
        return DoctorResult("event months", "warn", "the default partition holds events", todo)
    return DoctorResult("event months", "pass", "made ahead")


def _ms_since(began_s: float) -> float:
    return round((monotonic() - began_s) * 1000, 1)
