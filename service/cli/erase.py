"""Erase personal data: of a customer's payments, or of one reference. Amounts stay.

Without --confirm the command only lists the data. It connects as MIGRATE_DATABASE_URL (the owner),
because the service's role cannot change the history. It erases reference, customer and metadata
of the payments, details of their events beyond the result of each step, the provider's webhooks
about them, and drill reports that contain the value. The provider's books are not changed.

Status 0: all data is erased. 1: open payments keep their data, or the database did not answer;
run it again. 2: the arguments or settings do not allow it.

example:
  python -m service erase --merchant 019d.. --customer cus_7
  python -m service erase --merchant 019d.. --reference order-1234 --confirm
"""

from __future__ import annotations

import argparse
import dataclasses
from uuid import UUID

from service.cli import local
from service.cli.table import print_json
from service.payments.audit import cli_actor
from service.payments.erasure import Erasure
from service.settings import SettingsError

# Enough for a first look; a list of thousands helps no operator.
_SHOWN = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--merchant", type=UUID, metavar="UUID", required=True, help="whose")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--customer", type=_text, help="all ended payments of this customer")
    which.add_argument("--reference", type=_text, help="the ended payments of this reference")
    parser.add_argument("--confirm", action="store_true", help="erase; this cannot be undone")
    local.add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    settings = local.settings_here()
    owner_dsn = settings.migrate_database_url or settings.database_url
    with local.database(dataclasses.replace(settings, database_url=owner_dsn)) as pool:
        erasure = Erasure(
            pool,
            arguments.merchant,
            "reference" if arguments.customer is None else "customer",
            arguments.customer or arguments.reference,
        )
        if not erasure.is_allowed():
            raise SettingsError(
                "Only the tables' owner can change events: set MIGRATE_DATABASE_URL."
            )
        found = erasure.erase(cli_actor()) if arguments.confirm else erasure.look()
    is_open = [f"pay_{payment_id.hex}" for payment_id in found.is_open]
    if arguments.json:
        print_json(
            {
                "erased": arguments.confirm,
                "payments": found.payments,
                "events": found.events,
                "webhooks": found.inbox,
                "drill_reports": found.drills,
                "open_payments": is_open,
            }
        )
    else:
        what = f"{found.payments} payments and {found.drills} drill reports"
        print(f"Erased {what}." if arguments.confirm else f"{what} would be erased: --confirm.")
        if is_open:
            print(
                f"{len(is_open)} payments are still open and keep their data: settle them, then"
                f" run it again. {' '.join(is_open[:_SHOWN])}"
            )
    return 1 if is_open else 0


def _text(text: str) -> str:
    if not text or "\0" in text:
        raise argparse.ArgumentTypeError("must not be empty")
    return text
