"""Settle open payments: look up unknown outcomes, send queued calls, sweep the provider's books.

Several of these may run, on several machines; leases in the database separate their work.
SIGTERM ends it after the current work.

example:
  DATABASE_URL=postgresql://.. STRIPE_API_BASE=https://api.stripe.com python -m service reconcile
"""

from __future__ import annotations

import argparse
import signal
import socket
import threading
from typing import Any

from service.observability import logs
from service.observability.metrics import slots
from service.process.garbage import kept_imports
from service.settings import Settings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command takes no arguments: containers configure it by environment variables."""


def run(arguments: argparse.Namespace) -> int:
    settings = Settings.from_environ()
    slots.use_directory(settings.metrics_path)
    slots.claim("reconciler")
    logs.configure(settings.log_level, environment=settings.env, instance=socket.gethostname())
    with kept_imports():
        # Not at the top: metrics that exist before `use_directory` stay private to this process.
        from service.app.reconciler import create_background, wait_for_mode

    stop = threading.Event()

    def end(_signal_number: int, _frame: Any) -> None:
        stop.set()

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    wait_for_mode(settings, stop)
    create_background(settings).run(stop)
    return 0
