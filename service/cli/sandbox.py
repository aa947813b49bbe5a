"""Run the sandbox provider: Stripe's shape over TLS, its own books, faults on demand.

The same as `python -m service.lab.sandbox`; its --help lists the options.

example:
  python -m service sandbox --port 9443 --home /tmp/sandbox
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys


def add_arguments(parser: argparse.ArgumentParser) -> None:
    # The sandbox parses all options; argparse would take the first of them for its own.
    parser.prefix_chars = "\0"
    parser.add_argument("options", nargs=argparse.REMAINDER, help="options of the sandbox")


def run(arguments: argparse.Namespace) -> int:
    # An installation without the lab refuses here, in a sentence.
    importlib.import_module("service.lab")
    # A separate process without imports from the service, because production has no sandbox.
    command = [sys.executable, "-m", "service.lab.sandbox", *arguments.options]
    os.execv(command[0], command)  # noqa: S606
