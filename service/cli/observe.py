"""Show the incident on a local stack, observed by Prometheus, Alertmanager and Grafana.

Starts the installed ones of these programs with the shipped rules, routes and dashboards, sends
payments, and injects the three faults of the incident in turn, each until its alert has paged. The
pages are printed here. Ctrl-C stops everything; the data is below HOLDFAST_HOME/observe.

example:
  python -m service observe
  python -m service observe --hurry --once
"""

from __future__ import annotations

import argparse
import os
import signal

from service.process.manager import end_with_parent
from service.settings import Settings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--payments-per-s", type=_rate, default=12.0, metavar="N", help="payments a second (12)"
    )
    parser.add_argument(
        "--hurry",
        action="store_true",
        help="scrape every second and let alerts wait for seconds: two minutes instead of ten",
    )
    parser.add_argument("--once", action="store_true", help="end after the third incident")
    parser.add_argument(
        "--end-with-parent",
        action="store_true",
        help="stop when the parent process ends, for any reason (Linux)",
    )


def run(arguments: argparse.Namespace) -> int:
    # Not at the top: the production image leaves the lab out, and every other module imports without it.
    from service.lab.observe.session import ObserveOptions, observe

    if arguments.end_with_parent:
        end_with_parent(signal.SIGTERM)
    options = ObserveOptions(
        payments_per_s=arguments.payments_per_s,
        is_hurried=arguments.hurry,
        is_once=arguments.once,
    )
    return observe(Settings.from_environ(), dict(os.environ), options)


def _rate(text: str) -> float:
    rate = float(text)
    # A higher rate would measure the machine that sends the payments.
    if not 0 < rate <= 100:
        raise ValueError
    return rate
