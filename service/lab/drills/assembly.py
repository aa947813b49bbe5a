"""Assembles the parts of the drills of one ops plane."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from typing import Any

from service.database.pool.pool import ConnectionPool
from service.lab.drills.books import ListCharges, standing_rules
from service.lab.drills.expectations import Samples
from service.lab.drills.losses import LocalDatabase
from service.lab.drills.pair import Pair, sweep_leftovers
from service.lab.drills.plan import read_catalogue
from service.lab.drills.preflight import Preflight
from service.lab.drills.restart import DatabaseRestart
from service.lab.drills.runner import DrillContext
from service.lab.drills.runs import DrillRuns
from service.lab.drills.sandbox import Sandbox
from service.lab.drills.store import DrillStore
from service.lab.drills.targets import OwnInstance
from service.lab.drills.webhooks import WebhookDisorder
from service.payments.merchants import KeyStore
from service.settings import Settings, SettingsError, environ_of, reachable
from service.startup.gunicorn import ROOT

# An operator creates this file to block all drills on this machine, even without a database.
OFF_FILE = "drills.off"
# The API key for the sandbox provider; a real provider's test mode injects no faults.
SANDBOX_KEY = "sk_test_sandbox"


def assemble(
    settings: Settings,
    pool: ConnectionPool,
    *,
    list_charges: ListCharges,
    read: Callable[[], Samples],
    statistics: Callable[[], Mapping[str, Any]],
) -> DrillRuns:
    """The drills of one ops plane; a copy of the service starts with the settings of this one.

    Raises SettingsError for a drill file that cannot be read.
    """
    try:
        catalogue = read_catalogue(settings.drills_dir)
    except ValueError as error:
        raise SettingsError(f"HOLDFAST_DRILLS_DIR: {error}.") from error
    home, control_path = settings.home, settings.fault_proxy_control
    provider_url = settings.stripe_api_base or "https://api.stripe.com"
    provider_key = settings.stripe_api_key or ""
    has_sandbox = provider_key.startswith(SANDBOX_KEY)
    instance_allowed = settings.env != "production" or settings.simulation_instance
    store = DrillStore(pool)
    local_database = LocalDatabase(store, home)
    preflight = Preflight(
        store=store,
        read=read,
        statistics=statistics,
        provider_key=provider_key,
        has_sandbox=has_sandbox,
        control_path=control_path,
        instance_allowed=instance_allowed,
        off_file=home / OFF_FILE,
        is_local_database=local_database.is_ours,
    )
    host, port = reachable(settings.bind)
    instance = OwnInstance(
        url=f"http://{host}:{port}",
        home=home,
        control_path=control_path,
        read=read,
        restart_database=DatabaseRestart(store, home).carry_out,
    )
    pair = Pair(
        provider_url=provider_url,
        database_url=settings.database_url or "",
        environ=environ_of(settings, os.environ),
        root=ROOT,
    )
    context = DrillContext(
        store=store,
        keys=KeyStore(pool),
        preflight=preflight,
        targets={"instance": instance.targets, "pair": pair.targets},
        list_charges=list_charges,
        standing_rules=lambda deadline: standing_rules(pool, deadline),
        sandbox=Sandbox(provider_url, settings.provider_ca_file) if has_sandbox else None,
        webhooks=WebhookDisorder(settings.stripe_webhook_secret),
        local_database=local_database,
    )
    # A sweep waits for the pairs of other ops planes on this machine, so a thread does it.
    threading.Thread(target=sweep_leftovers, name="pair-sweep", daemon=True).start()
    # The default scope is the instance where faults can be injected on its links, else a pair.
    can_inject = control_path is not None and instance_allowed
    return DrillRuns(context, catalogue, default_scope="instance" if can_inject else "pair")
