"""Settle open payments: look up unknown outcomes, send queued calls, sweep the provider's books.

Several of these may run, on several machines; leases in the database separate their work.
SIGTERM ends it after the current work.

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

from service.observability import logs
from service.observability.metrics import slots
from service.process.garbage import kept_imports
from service.settings import Settings, SettingsError

log = logging.getLogger(__name__)

AGAIN_S = 0.5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command takes no arguments: containers configure it by environment variables."""


def run(arguments: argparse.Namespace) -> int:
    settings = Settings.from_environ()
    # This must precede every import of the metrics.
    slots.use_directory(settings.metrics_path)
    slots.claim("reconciler")
    logs.configure(settings.log_level, environment=settings.env, instance=socket.gethostname())
    with kept_imports():
        from service.app.reconciler import create_background

    stop = threading.Event()

    def end(_signal_number: int, _frame: Any) -> None:
        stop.set()

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    _claim_mode(settings, stop)
    create_background(settings).run(stop)
    return 0


def _claim_mode(settings: Settings, stop: threading.Event) -> None:
    """Wait until the mode of the open payments is known to be the provider's; send no call before."""
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
            # No payment can be settled without the database either; an operator may end the wait.
            log.warning("reconciler.waits_for_database", extra={"error": str(error).strip()})
            stop.wait(AGAIN_S)
