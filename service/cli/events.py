"""Follow the events: print each one as it is written, until Ctrl-C.

example:
  python -m service events tail
  python -m service events tail --since-s 3600 --once --json | jq -r .type | sort | uniq -c
"""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Iterator, Mapping
from typing import Any
from uuid import UUID

from service.cli import local
from service.cli.table import print_json, printable
from service.payments.events.feed import EventFeed
from service.web.api.movement_schemas import present_feed_event

_AGAIN_S = 0.5
_PAGE = 200


def add_arguments(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(dest="verb", required=True)
    tail = verbs.add_parser("tail", help="the newest events, and all new ones")
    tail.add_argument(
        "--since-s", type=float, default=60.0, metavar="S", help="begin S seconds ago"
    )
    tail.add_argument("--once", action="store_true", help="end after the existing events")
    tail.add_argument("--payment", metavar="ID", help="only the events of this payment")
    local.add_merchant(tail)
    local.add_json(tail)


def run(arguments: argparse.Namespace) -> int:
    with local.database() as pool, contextlib.suppress(KeyboardInterrupt):
        for event in _read(EventFeed(pool), local.merchant_of(arguments), arguments):
            if arguments.payment not in (None, event["payment_id"]):
                continue
            if arguments.json:
                print_json(event)
            else:
                print(line_of(event), flush=True)
    return 0


def line_of(event: Mapping[str, Any]) -> str:
    """One event as one line of a terminal."""
    told = " ".join(f"{name}={value}" for name, value in event["detail"].items())
    payment = event["payment_id"] or "-"
    return printable(f"{event['created_at']}  {payment}  {event['type']}  {told}")


def _read(
    feed: EventFeed, merchant_id: UUID, arguments: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    """Each event once. The feed's cursor stays behind events that are not committed yet."""
    # Version 7 ids begin with the milliseconds since 1970.
    after: UUID | None = UUID(int=int((time.time() - arguments.since_s) * 1000) << 80)
    told: set[UUID] = set()
    while True:
        page = feed.read(merchant_id, local.soon(), after=after, limit=_PAGE)
        for event in page.events:
            if event.event_id not in told:
                yield dict(present_feed_event(event))
        # Only events behind the cursor can appear again.
        told = {event.event_id for event in page.events}
        after = page.next_cursor or after
        if not page.has_more:
            if arguments.once:
                return
            time.sleep(_AGAIN_S)
