"""The local stack: starts every part that is not configured, watches all, stops them together."""

from __future__ import annotations

import http.client
import json
import os
import select
import shutil
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from time import monotonic
from typing import Any, NoReturn

from service.lab.drills.links import FaultLinks
from service.lab.local.banner import banner
from service.lab.local.embedded import EmbeddedPostgres, EmbeddedPostgresError
from service.lab.local.keys import keys_of, write_private
from service.process.file_lock import file_lock
from service.process.managed import ManagedProcess
from service.settings import Settings, SettingsError, environ_of
from service.startup.database import prepare, require_headroom, require_mode
from service.startup.gunicorn import ROOT, data_plane, ops_plane
from service.startup.ports import require_free

# A killed run still finishes its payments: its grace period, and PostgreSQL's last checkpoint.
PREDECESSOR_WAIT_S = 25.0
# A cold start on a slow machine; the end of a part is noticed at once.
START_WAIT_S = 60.0


class PartDied(Exception):
    """A part ended unexpectedly, so the others must end too; the message quotes its last output."""

    def __init__(self, name: str, part: ManagedProcess) -> None:
        said = "\n".join(f"  {line}" for line in part.lines()[-10:]) or "  (nothing)"
        super().__init__(
            f"The {name} ended unexpectedly (status {part.poll()}). Its last lines:\n{said}\n"
            f"Full log: {part.log_path}"
        )


class _StopRequested(Exception):
    """A signal or Ctrl-C asks this process to stop."""


def run_local_stack(settings: Settings, environ: dict[str, str], *, verbose: bool) -> int:
    """Run until a signal (status 0) or the end of a part (1); raises SettingsError before the start."""
    if settings.env == "production":
        raise SettingsError("`run` is for one machine: in production start serve, ops, reconcile.")
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _raise_stop)
    stack = _LocalStack(settings, environ, verbose=verbose)
    status = 0
    try:
        stack.start()
        stack.watch()
    except _StopRequested:
        pass
    except PartDied as error:
        print(error, file=sys.stderr)  # noqa: T201
        status = 1
    except EmbeddedPostgresError as error:
        raise SettingsError(str(error)) from error
    finally:
        # A second Ctrl-C ends only this process; the parts then end with it.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        stack.stop()
    return status


def _raise_stop(number: int, frame: object) -> NoReturn:
    raise _StopRequested


class _LocalStack:
    def __init__(self, settings: Settings, environ: dict[str, str], *, verbose: bool) -> None:
        self._home = settings.home.absolute()
        self._settings = settings
        self._environ = environ
        self._verbose = verbose
        self._parts: dict[str, ManagedProcess] = {}
        self._postgres: EmbeddedPostgres | None = None
        self._sandbox: dict[str, str] = {}
        self._links: FaultLinks | None = None
        self._lock_fd = -1

    def start(self) -> None:
        """Start every part that is not configured; returns when a payment can be made."""
        # PostgreSQL's user must be able to enter it; private files have their own modes.
        self._home.mkdir(mode=0o711, parents=True, exist_ok=True)
        self._lock_fd = _lock(self._home)
        # A killed run left it; no reader may take it for this run's file.
        (self._home / "run.json").unlink(missing_ok=True)
        self._settings.require_ops_bind()
        require_free("HOLDFAST_BIND", self._settings.bind)
        require_free("HOLDFAST_OPS_BIND", self._settings.ops_bind)
        self._require_test_money()
        keys = keys_of(self._home, self._settings.provider_mode or "test")
        self._set(
            home=self._home,
            bootstrap_api_key=self._settings.bootstrap_api_key or keys.api_key,
            stripe_webhook_secret=self._settings.stripe_webhook_secret or keys.webhook_secret,
            metrics_dir=_fresh(self._home / "metrics"),
            simulation_enabled=self._may_simulate(),
            # Merchants' programs run on this machine too.
            webhook_allow_private=_unless_said(self._environ, "HOLDFAST_WEBHOOK_ALLOW_PRIVATE"),
        )
        if self._settings.stripe_api_base is None:
            self._require_sandbox_speaks()
            self._start_sandbox()
        if self._settings.database_url is None:
            self._start_postgres()
        prepare(self._settings)
        require_headroom(self._settings)
        if self._sandbox:
            self._wait_for_sandbox()
        require_mode(self._settings)
        if self._settings.simulation_enabled:
            self._start_fault_proxy()
        self._start_service()
        self._wait_until_ready()
        self._write_run_file()
        key_was_given = "HOLDFAST_BOOTSTRAP_API_KEY" in self._environ
        said = banner(self._settings, self._sandbox, key_was_given=key_was_given)
        print(said, flush=True)  # noqa: T201

    def watch(self) -> NoReturn:
        """Wait for the first part that ends."""
        while True:
            self._notice_deaths(None)

    def stop(self) -> None:
        """Stop the service first, then the parts that it depends on."""
        if self._lock_fd == -1:
            # The home and its run.json are another run's.
            return
        (self._home / "run.json").unlink(missing_ok=True)
        foundations = ("fault proxy", "sandbox", "postgres")
        service = [part for name, part in self._parts.items() if name not in foundations]
        for part in service:
            part.release()
        for part in service:
            part.stop()
        for name in foundations:
            if name in self._parts:
                self._parts[name].stop()
        if self._links is not None:
            self._links.close()

    def _may_simulate(self) -> bool:
        is_wanted = _unless_said(self._environ, "HOLDFAST_SIMULATION_ENABLED")
        is_safe = self._settings.provider_mode != "live"
        return is_wanted and is_safe and self._settings.provider == "stripe"

    def _require_test_money(self) -> None:
        if self._settings.stripe_api_base is None and self._settings.provider_mode == "live":
            raise SettingsError(
                "STRIPE_API_KEY is a live key, but the sandbox would be charged: unset it, or set"
                " STRIPE_API_BASE."
            )

    def _require_sandbox_speaks(self) -> None:
        if self._settings.provider != "stripe":
            raise SettingsError(
                f"The sandbox serves PaymentIntents: HOLDFAST_PROVIDER={self._settings.provider}"
                " needs STRIPE_API_BASE (and STRIPE_API_KEY) of a provider that serves Charges."
            )

    def _start_sandbox(self) -> None:
        home = self._home / "sandbox"
        webhook_url = f"http://{self._settings.bind}/v1/webhooks/stripe"
        self._parts["sandbox"] = self._keep(
            "sandbox",
            [
                *(sys.executable, "-m", "service.lab.sandbox", "--home", str(home)),
                *("--webhook-url", webhook_url),
            ],
        )
        self._sandbox = {"url": "", "ca_file": ""}

    def _wait_for_sandbox(self) -> None:
        """Read the one line that the sandbox prints when it is ready."""
        sandbox = self._parts["sandbox"]
        give_up_at_s = monotonic() + START_WAIT_S
        while True:
            for line in sandbox.lines():
                if line.startswith("{"):
                    self._sandbox = json.loads(line)
                    self._set(
                        stripe_api_base=self._sandbox["url"],
                        stripe_api_key=self._settings.stripe_api_key or "sk_test_sandbox",
                        provider_ca_file=Path(self._sandbox["ca_file"]),
                    )
                    return
            self._require_time(give_up_at_s, "sandbox")
            self._notice_deaths(0.01)

    def _start_postgres(self) -> None:
        self._postgres = EmbeddedPostgres(self._home)
        self._postgres.start()
        self._parts["postgres"] = self._postgres.process
        self._set(
            database_url=self._postgres.app_url, migrate_database_url=self._postgres.owner_url
        )

    def _start_fault_proxy(self) -> None:
        """Put it on the data plane's links: the ops plane connects directly, so that it can end a fault."""
        if self._links is None:
            self._links = FaultLinks(
                self._home / "links",
                provider_url=self._settings.stripe_api_base or "",
                database_url=self._settings.database_url or "",
            )
            self._set(fault_proxy_control=self._links.control_path)
        self._parts["fault proxy"] = self._keep(
            "fault proxy", self._links.command, inherited_fds=self._links.filenos
        )

    def _start_service(self) -> None:
        # All parts share the provider's link; a faulted database link affects the data plane alone.
        to_provider: dict[str, Any] = {}
        to_both: dict[str, Any] = {}
        if self._links is not None:
            # A configured egress proxy may be the only way out, so the fault proxy does not replace it.
            if self._settings.provider_proxy_url is None:
                to_provider = {"provider_proxy_url": self._links.provider_proxy_url}
            to_both = {**to_provider, "database_url": self._links.database_url}
        python = [sys.executable, "-m", "service"]
        for name, command, changed in (
            ("data plane", data_plane(), to_both),
            ("ops plane", ops_plane(), {}),
            ("reconciler", [*python, "reconcile"], to_provider),
        ):
            self._parts[name] = self._keep(name, command, changed, on_foundations=True)

    def _keep(
        self,
        name: str,
        command: list[str],
        changed: dict[str, Any] | None = None,
        *,
        on_foundations: bool = False,
        inherited_fds: Sequence[int] = (),
    ) -> ManagedProcess:
        """Start a part with these settings, except for those in `changed`."""
        return ManagedProcess(
            command,
            log_path=self._home / "logs" / f"{name.replace(' ', '-')}.log",
            env=environ_of(replace(self._settings, **(changed or {})), self._environ),
            cwd=ROOT,
            # gunicorn's own timeouts, and a margin for its master.
            grace_s=self._settings.drain_s + self._settings.graceful_stop_s + 2,
            # The database outlives a kill, so that payments in flight are still recorded.
            outlived_by=list(self._parts.values()) if on_foundations else [],
            inherited_fds=[self._lock_fd, *inherited_fds],
            echo=self._verbose and on_foundations,
        )

    def _wait_until_ready(self) -> None:
        give_up_at_s = monotonic() + START_WAIT_S
        for name, bind, path in (
            ("data plane", self._settings.bind, "/readyz"),
            ("ops plane", self._settings.ops_bind, "/healthz"),
        ):
            while not _answers(bind, path):
                self._require_time(give_up_at_s, name)
                self._notice_deaths(0.02)

    def _require_time(self, give_up_at_s: float, name: str) -> None:
        if monotonic() > give_up_at_s:
            said = "\n".join(self._parts[name].lines()[-10:])
            raise SettingsError(f"The {name} did not start in {START_WAIT_S:.0f} s:\n{said}")

    def _notice_deaths(self, timeout_s: float | None) -> None:
        """Wait at most `timeout_s`; raises PartDied when a part has ended."""
        for part in self._parts.values():
            _ = part.pid  # After this read, only the end of the part makes its socket readable.
        ended, _, _ = select.select(list(self._parts.values()), [], [], timeout_s)
        for name, part in self._parts.items():
            if part in ended:
                part.wait(1.0)
                if name == "fault proxy":
                    # Payments must not end with a part that only drills need. New connections
                    # queue at the listeners until it is back, and no fault survives.
                    self._start_fault_proxy()
                    return
                raise PartDied(name, part)

    def _set(self, **values: Any) -> None:
        self._settings = replace(self._settings, **values)

    def _write_run_file(self) -> None:
        settings = self._settings
        write_private(
            self._home / "run.json",
            {
                "url": f"http://{settings.bind}",
                "ops_url": f"http://{settings.ops_bind}",
                "api_key": settings.bootstrap_api_key,
                "database_url": settings.database_url,
                "sandbox_url": self._sandbox.get("url"),
                "sandbox_ca": self._sandbox.get("ca_file"),
                # A reader of this file can inject faults: `service.lab.faultproxy.client`.
                "fault_proxy_control": self._links and str(self._links.control_path),
                "pids": {"supervisor": os.getpid()}
                | {name.replace(" ", "_"): part.pid for name, part in self._parts.items()},
            },
        )


def _lock(home: Path) -> int:
    """Take the home's lock; every part inherits it, so it is free once all of them have ended."""
    is_reported = False

    def may_wait() -> bool:
        nonlocal is_reported
        if (home / "run.json").exists() and _supervisor_lives(home):
            return False
        if not is_reported:
            print("Waiting for the previous run to end ...", flush=True)  # noqa: T201
            is_reported = True
        return True

    lock_fd = file_lock(home / "lock", wait_s=PREDECESSOR_WAIT_S, may_wait=may_wait)
    if lock_fd is None:
        raise SettingsError(
            f"Holdfast is already running with {home}: stop it, or set HOLDFAST_HOME to another directory."
        )
    return lock_fd


def _supervisor_lives(home: Path) -> bool:
    try:
        os.kill(json.loads((home / "run.json").read_text())["pids"]["supervisor"], 0)
    except PermissionError:
        return True
    except (OSError, ValueError):
        return False
    return True


def _fresh(directory: Path) -> Path:
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    return directory


def _unless_said(environ: dict[str, str], env: str) -> bool:
    return environ.get(env, "").lower() not in ("0", "false", "off", "no")


def _answers(bind: str, path: str) -> bool:
    host, _, port = bind.rpartition(":")
    reachable = {"0.0.0.0": "127.0.0.1", "[::]": "::1"}.get(host, host.strip("[]"))  # noqa: S104
    connection = http.client.HTTPConnection(reachable, int(port), timeout=2.0)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
