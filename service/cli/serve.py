"""Serve the data plane: payments, refunds, webhooks, /healthz and /readyz.

Becomes gunicorn, so signals and exit status are gunicorn's: SIGTERM ends it gracefully.

example:
  DATABASE_URL=postgresql://.. STRIPE_API_BASE=https://api.stripe.com python -m service serve
"""

from __future__ import annotations

import argparse

from service.settings import Settings
from service.startup.gunicorn import become_gunicorn, data_plane


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command takes no arguments: containers configure it by environment variables."""


def run(arguments: argparse.Namespace) -> int:
    become_gunicorn(data_plane(), Settings.from_environ())
