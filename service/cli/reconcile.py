"""Settle what is open: look up unknown outcomes, send what is queued, sweep the provider's books.

Any number of these may run, on any number of machines; leases in the database keep them apart.
SIGTERM ends it after what is under way.

example:
  DATABASE_URL=postgresql://.. STRIPE_API_BASE=https://api.stripe.com python -m service reconcile
"""

from __future__ import annotations

import argparse
import logging
import signal
import socket
import threading
from typing import Any

from service.observability import logs, multiprocess
from service.settings import Settings, SettingsError

log = logging.getLogger(__name__)

AGAIN_S = 0.5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Everything is a setting: containers have an environment."""


def run(arguments: argparse.Namespace) -> int:
    settings = Settings.from_environ()
    # Before anything imports the metrics.
    multiprocess.use_directory(settings.metrics_path)
    multiprocess.claim("reconciler")
    logs.configure(settings.log_level, environment=settings.env, instance=socket.gethostname())
    from service.app import create_background

    stop = threading.Event()

    def end(_signal_number: int, _frame: Any) -> None:
        stop.set()

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    _claim_mode(settings, stop)
    create_background(settings).run(stop)
    return 0


def _claim_mode(settings: Settings, stop: threading.Event) -> None:
    """Send nothing before it is known that the open payments are of the provider's mode."""
    from service.database.direct import DatabaseError, Unreachable
    from service.payments.modes import ModeConflict, claim_mode

    mode = settings.provider_mode
    while mode is not None and not stop.is_set():
        try:
            claim_mode(settings.database_url or "", mode)
            return
        except ModeConflict as error:
            raise SettingsError(str(error)) from error
        except (Unreachable, DatabaseError) as error:
            # Nothing can be settled without the database either; a person may end the wait.
            log.warning("reconciler.waits_for_database", extra={"error": str(error).strip()})
            stop.wait(AGAIN_S)
