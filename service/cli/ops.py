"""Serve the ops plane: metrics, diagnostics, the console, and simulation where it is enabled.

A process of its own, because it must answer when every thread of the data plane is stuck. Give it
the same PROMETHEUS_MULTIPROC_DIR as the data plane beside it.

example:
  HOLDFAST_OPS_BIND=0.0.0.0:8081 python -m service ops
"""

from __future__ import annotations

import argparse

from service.settings import Settings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Everything is a setting: containers have an environment."""


def run(arguments: argparse.Namespace) -> int:
    from service.supervisor.planes import become_gunicorn, ops_plane

    become_gunicorn(ops_plane(), Settings.from_environ())
