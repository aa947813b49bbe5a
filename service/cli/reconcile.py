"""Settle what is open: look up unknown outcomes, send what is queued, sweep the provider's books.

Any number of these may run, on any number of machines; leases in the database keep them apart.
SIGTERM ends it after what is under way.

example:
  DATABASE_URL=postgresql://.. STRIPE_API_BASE=https://api.stripe.com python -m service reconcile
"""

from __future__ import annotations

import argparse
import signal
import socket
import threading
from typing import Any

from service.observability import logs, multiprocess
from service.settings import Settings


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
    create_background(settings).run(stop)
    return 0
