"""Start a local stack on this machine, and stop it together.

Starts every part that is not configured: PostgreSQL without DATABASE_URL, the sandbox provider
without STRIPE_API_BASE; then the data plane, the ops plane and the reconciler. Ctrl-C stops all.

example:
  HOLDFAST_BIND=127.0.0.1:9080 HOLDFAST_OPS_BIND=127.0.0.1:9081 python -m service run --verbose
"""

from __future__ import annotations

import argparse
import os
import signal

from service.process.manager import end_with_parent
from service.settings import Settings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-v", "--verbose", action="store_true", help="print the parts' log lines here too"
    )
    parser.add_argument(
        "--end-with-parent",
        action="store_true",
        help="stop when the parent process ends, for any reason (Linux)",
    )


def run(arguments: argparse.Namespace) -> int:
    # Not at the top: the production image leaves the lab out, and every other module imports without it.
    from service.lab.local.stack import run_local_stack

    if arguments.end_with_parent:
        end_with_parent(signal.SIGTERM)
    return run_local_stack(Settings.from_environ(), dict(os.environ), verbose=arguments.verbose)
