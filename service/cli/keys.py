"""Create, list and revoke API keys.

To replace a key: create the new one, move your program to it, check in `list` that the old one is
no longer used, then revoke it. A revoked key stops working within five seconds.

example:
  python -m service keys make --scopes payments,read --label "shop, new"
  python -m service keys revoke 4fT9aQ0zKx1B
"""

from __future__ import annotations

import argparse
from datetime import UTC, datetime, timedelta
from uuid import UUID

from service.cli import local
from service.cli.table import print_json, print_rows
from service.payments.audit import cli_actor
from service.payments.merchants import ALL_SCOPES, KeyStore
from service.web.api.keys import present_key

_LABEL_LENGTH_MAX = 100
# A century: a key without an end says so by having none.
_DAYS_MAX = 36_500


def add_arguments(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(dest="verb", required=True)
    made = verbs.add_parser("make", help="create a key; it is shown only once")
    made.add_argument("--scopes", required=True, help="of payments,refunds,read,operator,platform")
    made.add_argument("--label", help="the program that uses it")
    made.add_argument("--mode", choices=("test", "live"), help="default: the provider's")
    made.add_argument("--expires-in-days", type=int, metavar="N")
    listed = verbs.add_parser("list", help="the newest 100 keys, with the last use of each")
    revoked = verbs.add_parser("revoke", help="end a key permanently")
    revoked.add_argument("key_id", help="the part after hf_test_ or hf_live_")
    for verb in (made, listed, revoked):
        local.add_merchant(verb)
        local.add_json(verb)


def run(arguments: argparse.Namespace) -> int:
    with local.database() as pool:
        verb = {"make": _make, "list": _list, "revoke": _revoke}
        verb[arguments.verb](KeyStore(pool), local.merchant_of(arguments), arguments)
    return 0


def _make(keys: KeyStore, merchant_id: UUID, arguments: argparse.Namespace) -> None:
    scopes = arguments.scopes.split(",")
    if not set(scopes) <= set(ALL_SCOPES):
        local.fail(f"The scopes are {', '.join(ALL_SCOPES)}.")
    provider_mode = local.settings_here().provider_mode
    mode = arguments.mode or provider_mode or "test"
    if provider_mode not in (None, mode):
        local.fail(f"STRIPE_API_KEY is of {provider_mode} mode: a {mode} key would be refused.")
    days = arguments.expires_in_days
    if days is not None and not 1 <= days <= _DAYS_MAX:
        local.fail(f"--expires-in-days must be 1 to {_DAYS_MAX}.")
    label = arguments.label
    if label is not None:
        local.fit_text(label, "label", longest=_LABEL_LENGTH_MAX)
    key, api_key = keys.create(
        merchant_id,
        local.soon(),
        mode=mode,
        scopes=scopes,
        label=label,
        expires_at=None if days is None else datetime.now(UTC) + timedelta(days=days),
        actor=cli_actor(),
    )
    if arguments.json:
        print_json({**present_key(key), "key": api_key})
    else:
        print(f"{api_key}\nStore it now: only its hash is kept.")


def _list(keys: KeyStore, merchant_id: UUID, arguments: argparse.Namespace) -> None:
    found = [present_key(key) for key in keys.of_merchant(merchant_id, local.soon())]
    if arguments.json:
        print_json(found)
    else:
        columns = ("id", "mode", "status", "scopes", "label", "last_used_at", "created_at")
        print_rows(found, columns)


def _revoke(keys: KeyStore, merchant_id: UUID, arguments: argparse.Namespace) -> None:
    if not keys.revoke(merchant_id, arguments.key_id, local.soon(), actor=cli_actor()):
        local.fail("This merchant has no live key with that id.")
    if arguments.json:
        print_json({"id": arguments.key_id, "status": "revoked"})
    else:
        print("Revoked; it stops working within five seconds.")
