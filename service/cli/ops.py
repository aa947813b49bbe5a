"""Serve the ops plane: metrics, diagnostics, the console, and simulation where it is enabled.

A separate process, because it must answer when every thread of the data plane is stuck. Give it
the same PROMETHEUS_MULTIPROC_DIR as the data plane beside it.

example:
  HOLDFAST_OPS_BIND=10.0.0.5:8081 HOLDFAST_OPS_OPEN=true python -m service ops
"""

from __future__ import annotations

import argparse

from service.settings import Settings
from service.startup.gunicorn import become_gunicorn, ops_plane


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command takes no arguments: containers configure it by environment variables."""


def run(arguments: argparse.Namespace) -> int:
    settings = Settings.from_environ()
    settings.require_ops_bind()
    become_gunicorn(ops_plane(), settings)
