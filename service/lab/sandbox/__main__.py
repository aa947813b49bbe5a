"""`python -m service.lab.sandbox`: run the sandbox provider until a signal ends it."""

from __future__ import annotations

import argparse
import fcntl
import json
import logging
import os
import signal
import socket
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic, sleep

from service.lab.sandbox.api import Api
from service.lab.sandbox.books import Announce, Books
from service.lab.sandbox.certificate import server_context
from service.lab.sandbox.control import Control
from service.lab.sandbox.dashboard import AUTHORISATION_LIVES_S, expire_authorisations
from service.lab.sandbox.faults import Faults
from service.lab.sandbox.payment_intents import PaymentIntents
from service.lab.sandbox.webhooks import Webhooks
from service.lab.sandbox.wire import Request, SandboxConnection, Server

# The kernel releases the lock of a killed predecessor within this time.
LOCK_WAIT_S = 1.5
EXPIRE_EVERY_S = 60.0


def main(arguments: list[str] | None = None) -> int:
    """Print one JSON line with the URL and the authority's file, then serve."""
    given = _parse(arguments)
    logging.basicConfig(level=logging.WARNING, format="sandbox %(levelname)s %(message)s")
    _end_at_once_on_signals()
    home: Path = given.home.resolve()
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not _lock(home / "lock"):
        sys.stderr.write(f"Another sandbox keeps its books in {home}: stop it, or give --home.\n")
        return 2
    listener = socket.create_server((given.host, given.port), backlog=512)
    url = f"https://{given.host}:{listener.getsockname()[1]}"
    books = Books(home / "books.sqlite", announce=_announce(given))
    faults = Faults(seed=given.seed)
    api = Api(books, faults, hosted_url=url)
    threading.Thread(
        target=_expire_for_ever, args=(books, api.payment_intents), name="expiry", daemon=True
    ).start()
    control = Control(books, faults, api.payment_intents)

    def handle(request: Request, line: SandboxConnection) -> None:
        if request.path.startswith("/_"):
            line.answer(control.answer(request))
        else:
            api.handle(request, line)

    tls = server_context(home / "tls", now=datetime.now(UTC))
    server = Server(handle, listener=listener, tls=tls)
    sys.stdout.write(json.dumps({"url": url, "ca_file": str(home / "tls" / "ca.pem")}) + "\n")
    sys.stdout.flush()
    server.serve_forever()
    return 0


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m service.lab.sandbox", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0: any free one, printed at start")
    parser.add_argument("--home", type=Path, required=True, help="books and certificate")
    parser.add_argument("--webhook-url", help="receiver of signed events; default: none")
    # Preferably from the environment: every user of the machine can read a command line.
    parser.add_argument(
        "--webhook-secret",
        default=os.environ.get("STRIPE_WEBHOOK_SECRET"),
        help="signs the events (whsec_..); else STRIPE_WEBHOOK_SECRET",
    )
    parser.add_argument("--seed", type=int, help="makes random faults repeatable")
    given = parser.parse_args(arguments)
    if given.webhook_url and not given.webhook_secret:
        parser.error("--webhook-url needs --webhook-secret")
    return given


def _announce(given: argparse.Namespace) -> Announce:
    if given.webhook_url:
        return Webhooks(url=given.webhook_url, secret=given.webhook_secret).announce
    return lambda _event_type, _event_json: None


def _expire_for_ever(books: Books, intents: PaymentIntents) -> None:
    """Release seven-day-old card reservations, once a minute, until the process ends."""
    while True:
        with books.writing(idempotency_key=None) as page:
            expire_authorisations(page, intents, AUTHORISATION_LIVES_S)
        sleep(EXPIRE_EVERY_S)


def _lock(path: Path) -> bool:
    """Hold the file for the life of the process; False while another process holds it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    end_s = monotonic() + LOCK_WAIT_S
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if monotonic() >= end_s:
                return False
            sleep(0.05)
        else:
            return True


def _end_at_once_on_signals() -> None:
    # Calls that hang on purpose would delay an orderly exit for minutes, and no data remains
    # to be written: every movement was committed before its answer left.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: os._exit(0))


if __name__ == "__main__":
    sys.exit(main())
