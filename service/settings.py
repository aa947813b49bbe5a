"""Every setting, typed, with its unit in its name; the only reader of the environment."""

from __future__ import annotations

import dataclasses
import ipaddress
import os
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints
from urllib.parse import urlsplit

from psycopg2 import ProgrammingError
from psycopg2.extensions import parse_dsn

# The second or third word of a Stripe key is its mode: sk_live_.., rk_test_.., sk_org_live_..
_KEY_MODE = re.compile(r"(?:[a-z]+_){1,3}?(?P<mode>test|live)_")
_PUBLISHABLE = re.compile(r"pk_(?:test|live)_")


class SettingsError(Exception):
    """A setting is missing or wrong; the message names it and gives the remedy."""


def _setting(env: str, default: Any, why: str, *, secret: bool = False) -> Any:
    """One setting: its name in the environment, its default, and its purpose in one line."""
    return dataclasses.field(
        default=default, metadata={"env": env, "why": why, "secret": secret}, repr=not secret
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The settings, read once at start. `repr` omits secrets."""

    env: Literal["development", "production"] = _setting(
        "HOLDFAST_ENV", "development", "production refuses what is only good on a laptop"
    )
    home: Path = _setting(
        "HOLDFAST_HOME", Path(".holdfast"), "data, keys, certificates and logs of a local run"
    )
    bind: str = _setting("HOLDFAST_BIND", "127.0.0.1:8080", "host:port of the data plane (/v1)")
    ops_bind: str = _setting(
        "HOLDFAST_OPS_BIND",
        "127.0.0.1:8081",
        "host:port of the ops plane; keep it off the internet",
    )
    ops_open: bool = _setting(
        "HOLDFAST_OPS_OPEN",
        False,
        "let HOLDFAST_OPS_BIND be an address that other machines reach, as in a container",
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = _setting(
        "HOLDFAST_LOG_LEVEL", "INFO", "one JSON object a line on standard output"
    )
    bootstrap_api_key: str | None = _setting(
        "HOLDFAST_BOOTSTRAP_API_KEY",
        None,
        "made at first start with all scopes; `make run` makes one up and prints it",
        secret=True,
    )

    web_workers: int = _setting("HOLDFAST_WEB_WORKERS", 2, "processes; one a core is a good start")
    web_threads: int = _setting(
        "HOLDFAST_WEB_THREADS", 16, "threads a worker; payments mostly wait, so more than cores"
    )
    graceful_stop_s: float = _setting(
        "HOLDFAST_GRACEFUL_STOP_S",
        15.0,
        "time to finish what is in flight; over the request budget",
    )
    drain_s: float = _setting(
        "HOLDFAST_DRAIN_S",
        0.5,
        "after SIGTERM /readyz is 503 this long before the port closes; over a balancer's interval",
    )
    request_timeout_ms: int = _setting(
        "HOLDFAST_REQUEST_TIMEOUT_MS", 8000, "budget of a whole request; callers may lower it"
    )

    database_url: str | None = _setting(
        "DATABASE_URL",
        None,
        "PostgreSQL, pgbouncer in transaction mode too; none: embedded PostgreSQL in a local run",
        secret=True,
    )
    migrate_database_url: str | None = _setting(
        "MIGRATE_DATABASE_URL",
        None,
        "owner of the schema, past pgbouncer; none: DATABASE_URL",
        secret=True,
    )
    db_pool_size: int = _setting(
        "HOLDFAST_DB_POOL_SIZE", 8, "connections a worker; workers x this must fit the server"
    )
    db_pool_wait_ms: int = _setting(
        "HOLDFAST_DB_POOL_WAIT_MS",
        500,
        "longest wait for a connection before 503 db_pool_exhausted",
    )
    db_pool_waiters: int = _setting(
        "HOLDFAST_DB_POOL_WAITERS", 64, "waiters a worker beyond which the next is refused at once"
    )
    db_statement_timeout_ms: int = _setting(
        "HOLDFAST_DB_STATEMENT_TIMEOUT_MS",
        2000,
        "set on the role by `migrate`, so pgbouncer keeps it",
    )
    db_prepared: bool | None = _setting(
        "HOLDFAST_DB_PREPARED",
        None,
        "PREPARE each statement once a connection; none: wherever no pooler is between",
    )

    provider: Literal["stripe", "stripe_charges"] = _setting(
        "HOLDFAST_PROVIDER",
        "stripe",
        "the adapter of new payments: PaymentIntents, or the older Charges (one_shot only)",
    )
    stripe_api_base: str | None = _setting(
        "STRIPE_API_BASE", None, "the provider; none: the sandbox in a local run"
    )
    stripe_api_key: str | None = _setting(
        "STRIPE_API_KEY", None, "sk_test_.. or sk_live_..; or STRIPE_API_KEY_FILE", secret=True
    )
    stripe_webhook_secret: str | None = _setting(
        "STRIPE_WEBHOOK_SECRET", None, "whsec_..; without it webhooks are refused", secret=True
    )
    provider_mode_said: Literal["test", "live"] | None = _setting(
        "HOLDFAST_PROVIDER_MODE",
        None,
        "live where STRIPE_API_KEY moves real money; only for a key whose text does not say it",
    )
    foreign_charges: Literal["page", "ignore"] = _setting(
        "HOLDFAST_FOREIGN_CHARGES",
        "ignore",
        "charges on the account without our metadata: page where nobody else may charge on it",
    )
    sweep_first_days: int = _setting(
        "HOLDFAST_SWEEP_FIRST_DAYS",
        30,
        "how far back a database without a sweep reads the provider's lists",
    )
    provider_flow: Literal["two_phase", "one_shot"] = _setting(
        "HOLDFAST_PROVIDER_FLOW",
        "two_phase",
        "one_shot saves a call, only for a provider that honours idempotency keys",
    )
    provider_timeout_ms: int = _setting(
        "HOLDFAST_PROVIDER_TIMEOUT_MS", 5000, "wall-clock budget of the whole exchange of a charge"
    )
    provider_connect_timeout_ms: int = _setting(
        "HOLDFAST_PROVIDER_CONNECT_TIMEOUT_MS", 1000, "TCP connect; the cheapest sign of an outage"
    )
    provider_ca_file: Path | None = _setting(
        "HOLDFAST_PROVIDER_CA_FILE",
        None,
        "CA bundle for the provider; none: the system's (certifi)",
    )
    provider_proxy_url: str | None = _setting(
        "HOLDFAST_PROVIDER_PROXY_URL",
        None,
        "HTTP CONNECT proxy on the way to the provider; *_PROXY variables are ignored",
    )
    provider_concurrency_ratio: float = _setting(
        "HOLDFAST_PROVIDER_CONCURRENCY_RATIO",
        0.75,
        "share of a worker's threads that may wait for the provider; the rest serve reads",
    )

    breaker_enabled: bool = _setting(
        "HOLDFAST_BREAKER_ENABLED", True, "false only to see a drill fail without it"
    )

    rate_limit_per_s: float = _setting(
        "HOLDFAST_RATE_LIMIT_PER_S",
        1000.0,
        "requests a second of one API key, over all workers of a host; then 429",
    )
    rate_limit_burst: int = _setting(
        "HOLDFAST_RATE_LIMIT_BURST", 2000, "requests of one API key at once, saved up while idle"
    )
    open_payments_max: int = _setting(
        "HOLDFAST_OPEN_PAYMENTS_MAX",
        10000,
        "queued or in doubt of one merchant, counted every 5 s; then 429 for further ones",
    )
    webhook_timeout_ms: int = _setting(
        "HOLDFAST_WEBHOOK_TIMEOUT_MS", 5000, "what a merchant's webhook endpoint has to answer"
    )
    webhook_allow_private: bool = _setting(
        "HOLDFAST_WEBHOOK_ALLOW_PRIVATE",
        False,
        "deliver to private addresses, any port and plain http too; `make run` turns it on",
    )
    webhook_ca_file: Path | None = _setting(
        "HOLDFAST_WEBHOOK_CA_FILE",
        None,
        "CA bundle for webhook endpoints; none: the system's (certifi)",
    )

    simulation_enabled: bool = _setting(
        "HOLDFAST_SIMULATION_ENABLED", False, "faults on demand; `make run` turns it on"
    )
    simulation_instance: bool = _setting(
        "HOLDFAST_SIMULATION_INSTANCE",
        False,
        "production may strike its own live links; else only a pair of copies",
    )
    drills_dir: Path | None = _setting(
        "HOLDFAST_DRILLS_DIR",
        None,
        "drills of your own, a TOML file each, beside ours: docs/drills.md",
    )
    fault_proxy_control: Path | None = _setting(
        "HOLDFAST_FAULT_PROXY_CONTROL",
        None,
        "control socket of the fault proxy on this instance's links; `run` sets it",
    )
    ops_hosts: str | None = _setting(
        "HOLDFAST_OPS_HOSTS",
        None,
        "names, comma-separated, under which people reach the ops plane besides loopback",
    )
    metrics_dir: Path | None = _setting(
        "PROMETHEUS_MULTIPROC_DIR", None, "files of the workers' metrics; none: under HOLDFAST_HOME"
    )
    queue_expires_s: float = _setting(
        "HOLDFAST_QUEUE_EXPIRES_S",
        86400.0,
        "a queued payment that could not be sent by then is given up; a request may say less",
    )

    keep_inbox_days: int = _setting(
        "HOLDFAST_KEEP_INBOX_DAYS",
        30,
        "the provider's handled webhooks; at least 7, since the provider sends again for days",
    )
    keep_outbox_days: int = _setting(
        "HOLDFAST_KEEP_OUTBOX_DAYS",
        30,
        "merchants' webhooks that were given up or wait for a paused endpoint; at least 7",
    )
    keep_drills_days: int = _setting(
        "HOLDFAST_KEEP_DRILLS_DAYS", 365, "reports of drills; the audit log keeps that they ran"
    )
    keep_keys_days: int | None = _setting(
        "HOLDFAST_KEEP_KEYS_DAYS",
        None,
        "idempotency keys of ended payments, at least 90; none: as long as the payment",
    )
    keep_events_months: int | None = _setting(
        "HOLDFAST_KEEP_EVENTS_MONTHS",
        None,
        "whole months of events that `retain` leaves in the table, at least 13; none: all",
    )

    @classmethod
    def from_environ(cls, environ: Mapping[str, str] | None = None) -> Settings:
        """Read all settings; raises SettingsError that names the first one that is wrong."""
        environ = os.environ if environ is None else environ
        hints = get_type_hints(cls)
        values = {}
        for field in dataclasses.fields(cls):
            text = _read(environ, field.metadata["env"], secret=field.metadata["secret"])
            if text is not None and text != "":
                values[field.name] = _parse(field.metadata["env"], text, hints[field.name])
        settings = cls(**values)
        settings._check()
        return settings

    def _check(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int | float) and not isinstance(value, bool) and value <= 0:
                raise SettingsError(f"{field.metadata['env']} must be above 0, not {value}.")
        if self.provider_concurrency_ratio > 1:
            raise SettingsError("HOLDFAST_PROVIDER_CONCURRENCY_RATIO is a share: at most 1.")
        if self.provider_connect_timeout_ms > self.provider_timeout_ms:
            raise SettingsError(
                "HOLDFAST_PROVIDER_CONNECT_TIMEOUT_MS cannot exceed HOLDFAST_PROVIDER_TIMEOUT_MS."
            )
        if self.graceful_stop_s <= self.request_timeout_ms / 1000:
            raise SettingsError(
                "HOLDFAST_GRACEFUL_STOP_S must exceed HOLDFAST_REQUEST_TIMEOUT_MS: else a stop can"
                " kill a payment in the middle of its call."
            )
        self._check_kept()
        if self.provider == "stripe_charges":
            self._check_charges()
        self._check_modes()
        if self.simulation_enabled and self.provider_mode == "live":
            raise SettingsError(
                "STRIPE_API_KEY is a live key and HOLDFAST_SIMULATION_ENABLED is on: faults are"
                " never rehearsed with real money. Use a test key, or turn simulation off."
            )
        for env, bind in (("HOLDFAST_BIND", self.bind), ("HOLDFAST_OPS_BIND", self.ops_bind)):
            host, _, port = bind.rpartition(":")
            if not host or not port.isdigit() or int(port) > 65535:
                raise SettingsError(f"{env} must look like 127.0.0.1:8080.")
        _check_dsn("DATABASE_URL", self.database_url)
        _check_dsn("MIGRATE_DATABASE_URL", self.migrate_database_url)
        _check_url("STRIPE_API_BASE", self.stripe_api_base)
        _check_url("HOLDFAST_PROVIDER_PROXY_URL", self.provider_proxy_url, may_log_in=True)

    def _check_modes(self) -> None:
        """Our own keys must match the mode in their text: test money or real money."""
        key = self.stripe_api_key
        if key is not None and (key != key.strip() or not key.isprintable() or " " in key):
            # A server may strip surrounding blanks, and then it sees another key than we checked.
            raise SettingsError("STRIPE_API_KEY holds white space: write the key alone.")
        if key is not None and _PUBLISHABLE.match(key):
            raise SettingsError("STRIPE_API_KEY is a publishable key: use the secret one, sk_..")
        told = _mode_of(key)
        if told is not None and self.provider_mode_said not in (None, told):
            raise SettingsError(
                f"STRIPE_API_KEY is a {told} key, but HOLDFAST_PROVIDER_MODE says"
                f" {self.provider_mode_said}: remove that setting."
            )
        if key and self.provider_mode is None:
            raise SettingsError(
                "STRIPE_API_KEY does not say whether it moves real money: set"
                " HOLDFAST_PROVIDER_MODE to test or live."
            )
        ours = _mode_of(self.bootstrap_api_key)
        if ours is not None and self.provider_mode not in (None, ours):
            raise SettingsError(
                f"HOLDFAST_BOOTSTRAP_API_KEY is a {ours} key, but STRIPE_API_KEY is of"
                f" {self.provider_mode} mode: use a key that begins with hf_{self.provider_mode}_."
            )

    def _check_kept(self) -> None:
        """Shorter times would remove rows that are still needed."""
        for env, kept, least in (
            ("HOLDFAST_SWEEP_FIRST_DAYS", self.sweep_first_days, 2),
            ("HOLDFAST_KEEP_INBOX_DAYS", self.keep_inbox_days, 7),
            ("HOLDFAST_KEEP_OUTBOX_DAYS", self.keep_outbox_days, 7),
            ("HOLDFAST_KEEP_KEYS_DAYS", self.keep_keys_days, 90),
            ("HOLDFAST_KEEP_EVENTS_MONTHS", self.keep_events_months, 13),
        ):
            if kept is not None and kept < least:
                raise SettingsError(f"{env} must be at least {least}, not {kept}.")

    def _check_charges(self) -> None:
        if self.provider_flow == "two_phase":
            raise SettingsError(
                "HOLDFAST_PROVIDER=stripe_charges knows one call only, which hangs on the idempotency"
                " key: set HOLDFAST_PROVIDER_FLOW=one_shot where the provider honours keys."
            )
        if self.simulation_enabled:
            raise SettingsError(
                "HOLDFAST_SIMULATION_ENABLED rehearses with PaymentIntents: turn it off, or set"
                " HOLDFAST_PROVIDER=stripe."
            )

    @property
    def provider_mode(self) -> Literal["test", "live"] | None:
        """Whether the provider's key moves real money; None without a key, when no money moves."""
        return self.provider_mode_said or _mode_of(self.stripe_api_key)

    @property
    def test_payment_method(self) -> str:
        """The payment method that succeeds in the provider's test mode."""
        return "tok_visa" if self.provider == "stripe_charges" else "pm_card_visa"

    @property
    def is_open_to_others(self) -> bool:
        """Whether the data plane can be reached from other machines."""
        return _is_open(self.bind)

    def require_ops_bind(self) -> None:
        """Refuse an ops plane that other machines reach, unless a setting allows it explicitly.

        Only the ops plane checks this: an image's other programs have its address in their settings.
        """
        if _is_open(self.ops_bind) and not self.ops_open:
            raise SettingsError(
                f"HOLDFAST_OPS_BIND={self.ops_bind} is open to other machines: set"
                " HOLDFAST_OPS_OPEN=true where a private network or a container keeps strangers"
                " away, else bind 127.0.0.1."
            )

    @property
    def metrics_path(self) -> Path:
        """The directory of the workers' metric files."""
        return self.metrics_dir or self.home / "metrics"


def _mode_of(key: str | None) -> Literal["test", "live"] | None:
    """The mode in the text of a key, the provider's or one of ours."""
    match = _KEY_MODE.match(key or "")
    if match is None:
        return None
    return "live" if match["mode"] == "live" else "test"


def _is_open(bind: str) -> bool:
    host = bind.rpartition(":")[0].strip("[]")
    try:
        return not ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() != "localhost"


def reachable(bind: str) -> tuple[str, int]:
    """Host and port at which this machine reaches the listener on `bind`."""
    host, _, port = bind.rpartition(":")
    host = {"0.0.0.0": "127.0.0.1", "[::]": "::1"}.get(host, host.strip("[]"))  # noqa: S104
    return host, int(port)


def environ_of(settings: Settings, environ: Mapping[str, str]) -> dict[str, str]:
    """`environ`, changed so that another process reads these settings from it."""
    texts = dict(environ)
    for field in dataclasses.fields(settings):
        env, value = field.metadata["env"], getattr(settings, field.name)
        texts.pop(env, None)
        texts.pop(f"{env}_FILE", None)
        if value is not None:
            texts[env] = str(value.absolute() if isinstance(value, Path) else value)
    return texts


def describe() -> Iterator[tuple[str, str, str, bool]]:
    """Each setting as (name, default as text, purpose, is_secret), in the order of `.env.example`."""
    for field in dataclasses.fields(Settings):
        default = field.default
        text = "" if default is None else str(default)
        if isinstance(default, bool):
            text = str(default).lower()
        meta = field.metadata
        yield meta["env"], text, meta["why"], meta["secret"]


def _read(environ: Mapping[str, str], env: str, *, secret: bool) -> str | None:
    """The variable's value, or for a secret the content of the file in `NAME_FILE`."""
    file_env = f"{env}_FILE"
    if not secret or not environ.get(file_env):
        return environ.get(env)
    if environ.get(env):
        raise SettingsError(f"Both {env} and {file_env} are set: keep one.")
    path = Path(environ[file_env])
    try:
        mode = path.stat().st_mode
        text = path.read_text().strip()
    except OSError as error:
        raise SettingsError(f"{file_env}: {path} cannot be read: {error.strerror}.") from error
    if mode & stat.S_IROTH:
        raise SettingsError(f"{file_env}: {path} can be read by everybody: chmod o-r it.")
    return text


def _parse(env: str, text: str, hint: Any) -> Any:
    kind = hint
    if get_origin(hint) is not Literal:
        kind = next((arg for arg in get_args(hint) if arg is not type(None)), hint)
    if get_origin(kind) is Literal:
        allowed = get_args(kind)
        if text not in allowed:
            raise SettingsError(f"{env} must be one of {', '.join(allowed)}.")
        return text
    if kind is bool:
        words = {"1": True, "true": True, "on": True, "yes": True}
        words |= {"0": False, "false": False, "off": False, "no": False}
        if text.lower() not in words:
            raise SettingsError(f"{env} must be true or false.")
        return words[text.lower()]
    try:
        return kind(text)
    except ValueError:
        # The message omits the text: it may be a secret in the wrong variable.
        noun = {int: "a whole number", float: "a number"}.get(kind, kind.__name__)
        raise SettingsError(f"{env} must be {noun}.") from None


# The messages of both checks omit the value: it holds a password, or a piece of one in the wrong place.
def _check_dsn(env: str, dsn: str | None) -> None:
    """libpq splits an address at the first `@` and `/`, also where a password holds them."""
    try:
        parts = parse_dsn(dsn or "")
    except ProgrammingError:
        parts = {"port": "unknown"}
    ports = [port or "5432" for port in str(parts.get("port") or "").split(",")]
    # A name that begins with @ is a socket in Linux' abstract namespace.
    places = (str(parts.get("host") or "")[1:], str(parts.get("dbname") or ""))
    if not all(_is_port(port) for port in ports) or any("@" in place for place in places):
        raise SettingsError(
            f"{env} must look like postgresql://user:password@host:5432/database, with special"
            " characters of the password percent-encoded (@ as %40, / as %2F, % as %25)."
        )


def _check_url(env: str, url: str | None, *, may_log_in: bool = False) -> None:
    try:
        parts = urlsplit(url or "https://host")
        # The attribute `port` raises ValueError, too.
        is_good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        is_good = False
    if not is_good or ("@" in parts.netloc and not may_log_in):
        form = "user:password@host:port" if may_log_in else "host:port, without user and password"
        raise SettingsError(f"{env} must look like https://{form}.")


def _is_port(text: str) -> bool:
    return text.isascii() and text.isdigit() and 0 < int(text) < 65536
