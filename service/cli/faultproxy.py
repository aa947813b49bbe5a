"""Relay the links to the provider and the database, and inject faults when a drill orders them.

For drills only: point HOLDFAST_PROVIDER_PROXY_URL and the data plane's DATABASE_URL at it, and
HOLDFAST_FAULT_PROXY_CONTROL of the ops plane at its control socket. Without an order it only relays.

example:
  python -m service faultproxy --control /run/holdfast/control \\
    --provider-listen 127.0.0.1:9100 --provider-target api.stripe.com:443
"""

from __future__ import annotations

import argparse
import socket

from service.observability import logs


def add_arguments(parser: argparse.ArgumentParser) -> None:
    # Not at the top: the production image leaves the lab out, and every other module imports without it.
    from service.lab.faultproxy import proxy

    proxy.add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    # As above.
    from service.lab.faultproxy import proxy

    # It shares only the log format with the service: it reads no settings, so it holds no secret.
    logs.configure("INFO", environment="rehearsal", instance=socket.gethostname())
    return proxy.run(arguments)
