"""Run the stand-in provider: Stripe's shape over TLS, books of its own, faults on demand.

The same as `python -m service.sandbox`, which tells its options with --help.

example:
  python -m service sandbox --port 9443 --home /tmp/sandbox
"""

from __future__ import annotations

import argparse
import os
import sys


def add_arguments(parser: argparse.ArgumentParser) -> None:
    # All words are the sandbox's own; argparse would take the first of its options for ours.
    parser.prefix_chars = "\0"
    parser.add_argument("options", nargs=argparse.REMAINDER, help="options of the sandbox")


def run(arguments: argparse.Namespace) -> int:
    # A process of its own that imports nothing of the service, as in production there is none.
    command = [sys.executable, "-m", "service.sandbox", *arguments.options]
    os.execv(command[0], command)  # noqa: S606
