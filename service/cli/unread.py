"""List and release objects of the provider's lists that the sweep could not read.

The sweep reads each object again by itself, at most every 30 minutes. An object without a readable
owner keeps the queue waiting after lost commits. Release one only when a person has checked it
at the provider: it then holds no payment any more, permanently, and is not read again.

example:
  python -m service unread list
  python -m service unread release pi_3Oz.. --evidence "no charge of ours, ticket 4711"
"""

from __future__ import annotations

import argparse
from typing import Any

from service.cli import local
from service.cli.table import print_json, print_rows
from service.database.pool.pool import ConnectionPool
from service.payments.audit import cli_actor
from service.payments.settling.unread_objects import UnreadObject, list_unread, release

_EVIDENCE_LENGTH_MIN = 10
_COLUMNS = (
    *("mark", "provider", "feed", "since", "payment_id", "reason", "holds_all", "tries"),
    "next_try_at",
)
_RELEASE_MAX = 1000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(dest="verb", required=True)
    listed = verbs.add_parser("list", help="the oldest objects first")
    listed.add_argument("--released", action="store_true", help="released ones as well")
    listed.add_argument("--limit", type=int, default=100, choices=range(1, 1001), metavar="N")
    released = verbs.add_parser("release", help="end an object's effect permanently")
    released.add_argument("mark", help="its mark in the list: an id, a digest, or a slice")
    released.add_argument("--provider", help="where several providers have that mark")
    released.add_argument("--feed", help="where several lists have that mark")
    released.add_argument(
        "--evidence", required=True, help="what was seen at the provider: a page, a ticket"
    )
    for verb in (listed, released):
        local.add_json(verb)


def run(arguments: argparse.Namespace) -> int:
    with local.database() as pool:
        {"list": _list, "release": _release}[arguments.verb](pool, arguments)
    return 0


def _list(pool: ConnectionPool, arguments: argparse.Namespace) -> None:
    found = list_unread(pool, local.soon(), with_released=arguments.released, limit=arguments.limit)
    shown = [_shown(one) for one in found]
    print_json(shown) if arguments.json else print_rows(shown, _COLUMNS)


def _release(pool: ConnectionPool, arguments: argparse.Namespace) -> None:
    evidence = arguments.evidence.strip()
    if len(evidence) < _EVIDENCE_LENGTH_MIN:
        local.fail("The evidence must name a source, in 10 characters at least.")
    one = _find(pool, arguments)
    is_released = release(
        pool,
        *(one.provider, one.feed, one.mark),
        local.soon(),
        evidence=evidence,
        actor=cli_actor(),
    )
    if not is_released:
        local.fail("It was read, or released, at this moment.")
    document = {**_shown(one), "released": True}
    print_json(document) if arguments.json else print("Released: it holds no payment any more.")


def _find(pool: ConnectionPool, arguments: argparse.Namespace) -> UnreadObject:
    found = [
        one
        for one in list_unread(pool, local.soon(), limit=_RELEASE_MAX)
        if one.mark == arguments.mark
        and arguments.provider in (None, one.provider)
        and arguments.feed in (None, one.feed)
    ]
    if not found:
        local.fail("There is no such unread object: `unread list` shows them.")
    if len(found) > 1:
        local.fail("Several lists have that mark: name --provider and --feed.")
    return found[0]


def _shown(one: UnreadObject) -> dict[str, Any]:
    return {
        "mark": one.mark,
        "provider": one.provider,
        "feed": one.feed,
        "provider_ref": one.provider_ref,
        "since": one.since.isoformat(),
        "merchant_id": None if one.merchant_id is None else str(one.merchant_id),
        "payment_id": None if one.payment_id is None else f"pay_{one.payment_id.hex}",
        "reason": one.reason,
        "holds_all": one.holds_all,
        "released": one.released,
        "tries": one.tries,
        "next_try_at": None if one.released else one.due_at.isoformat(),
    }
