"""`python -m service`: the entry to every program of Holdfast; `run` starts all of them here."""

from __future__ import annotations

import argparse
import difflib
import importlib
import os
import select
import sys
from typing import NoReturn

from service.process.garbage import kept_imports
from service.settings import SettingsError
from service.version import VERSION

# Each is a module `service.cli.NAME` with `add_arguments(parser)` and `run(arguments) -> int`,
# imported only when it is called: one command's imports must not slow down another.
COMMANDS = {
    "run": "start everything on this machine, and stop it together (the default)",
    "observe": "the same, watched by Prometheus and Alertmanager, with the incident to look at",
    "serve": "the data plane: gunicorn with /v1, /healthz and /readyz",
    "ops": "the ops plane: metrics, diagnostics, the console",
    "reconcile": "the clock: settle what is in doubt, send what is queued",
    "drill": "rehearse a fault on a running instance, with a verdict",
    "migrate": "bring the database to this version's schema",
    "retain": "make and detach months of events; for cron",
    "erase": "remove what tells of a person from payments, events and drills",
    "payments": "list, show, reconcile and resolve payments",
    "unread": "list and release what the sweep could not read at the provider",
    "keys": "make, list and revoke API keys",
    "events": "follow what happens",
    "audit": "read who did what: keys, endpoints, resolutions, drills",
    "doctor": "check everything, and say what to do",
    "sandbox": "the stand-in provider, over TLS, with faults on demand",
    "faultproxy": "stand on the links to provider and database, for rehearsals",
}


def main(argv: list[str] | None = None) -> int:
    """Do what the command line asks; the status for the shell (2: it cannot be done like this)."""
    words = sys.argv[1:] if argv is None else argv
    try:
        try:
            return _run(words)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        if not _is_output_closed():
            raise
        return 1
    except KeyboardInterrupt:
        return 130  # As a shell reports SIGINT.


def _run(words: list[str]) -> int:
    name = words[0] if words else "run"
    if name in ("-h", "--help"):
        print(_overview())
        return 0
    if name in ("-V", "--version"):
        print(f"holdfast {VERSION}")
        return 0
    if name.startswith("-"):
        name, words = "run", ["run", *words]
    if name not in COMMANDS:
        close = difflib.get_close_matches(name, COMMANDS, n=1)
        meant = f" Did you mean {close[0]!r}?" if close else ""
        _refuse(f"There is no command {name!r}.{meant}\n\n{_overview()}")
    try:
        with kept_imports():
            command = importlib.import_module(f"service.cli.{name}")
        parser = argparse.ArgumentParser(
            prog=f"python -m service {name}",
            description=command.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.add_arguments(parser)
        status: int = command.run(parser.parse_args(words[1:]))
    except SettingsError as error:
        _refuse(str(error))
    except ModuleNotFoundError as error:
        if error.name != "service.lab":
            raise
        _refuse(
            f"`{name}` needs service.lab, which this installation leaves out: run it from a checkout,"
            " or build the image with --build-arg LAB=1."
        )
    return status


def _is_output_closed() -> bool:
    """Whether the reader of our output has ended, as `head` does; then no further byte is sent there.

    Source: https://docs.python.org/3/library/signal.html#note-on-sigpipe
    """
    output = select.poll()
    output.register(sys.stdout.fileno(), 0)
    if not any(event & (select.POLLERR | select.POLLHUP) for _, event in output.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True


def _overview() -> str:
    lines = "\n".join(f"  {name:<10} {what}" for name, what in COMMANDS.items())
    return (
        f"usage: python -m service [COMMAND] [--help] | --version\n\n{lines}\n\n"
        "examples:\n"
        "  python -m service\n"
        "  python -m service payments list --status unknown\n"
        "  DATABASE_URL=postgresql://.. python -m service migrate\n"
        "  HOLDFAST_BIND=0.0.0.0:8080 python -m service serve\n\n"
        "Settings come from the environment: see .env.example."
    )


def _refuse(message: str) -> NoReturn:
    print(message, file=sys.stderr)
    raise SystemExit(2)


if __name__ == "__main__":
    sys.exit(main())
