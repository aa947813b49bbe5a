"""Read the audit log: the acts of operators and of the command line, newest first.

Each row names the actor (API key or operating-system user), the place, the request's id and the
change. The service never changes or deletes a row.

example:
  python -m service audit --action api_key --since 2026-11-01
  python -m service audit --target pay_019d.. --json | jq .
"""

from __future__ import annotations

import argparse
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from service.cli import local
from service.cli.table import print_json, print_rows
from service.payments.audit import AuditLog, Record

_LIMIT_MAX = 1000
_COLUMNS = ("at", "action", "actor", "address", "request_id", "target", "detail")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--action", help="one action, or a group of them: api_key, webhook_endpoint, .."
    )
    parser.add_argument("--actor", help="id of the API key, or name of the operating-system user")
    parser.add_argument("--target", help="id of the changed object: pay_.., we_.., a key's id")
    parser.add_argument("--merchant", type=UUID, metavar="UUID", help="default: all merchants")
    parser.add_argument(
        "--since", type=_moment, metavar="TIME", help="start of the period, RFC 3339"
    )
    parser.add_argument("--until", type=_moment, metavar="TIME", help="before then")
    parser.add_argument("--before", type=UUID, metavar="ID", help="older than this row: next page")
    parser.add_argument("--limit", type=_limit, default=100, metavar="N", help="at most 1000")
    local.add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    with local.database() as pool:
        records = AuditLog(pool).read(
            local.soon(),
            action=arguments.action,
            actor=arguments.actor,
            target=arguments.target,
            merchant_id=arguments.merchant,
            since=arguments.since,
            until=arguments.until,
            before=arguments.before,
            limit=arguments.limit,
        )
    shown = [_shown(record) for record in records]
    if arguments.json:
        print_json(shown)
    else:
        print_rows(
            [{**row, "actor": f"{row['actor_kind']}:{row['actor']}"} for row in shown], _COLUMNS
        )
    return 0


def _shown(record: Record) -> dict[str, Any]:
    return {
        "id": str(record.audit_id),
        "at": record.at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "action": record.action,
        "merchant_id": None if record.merchant_id is None else str(record.merchant_id),
        "actor_kind": record.actor_kind,
        "actor": record.actor,
        "actor_label": record.actor_label,
        "address": record.address,
        "request_id": record.request_id,
        "target": record.target,
        "detail": record.detail,
    }


def _moment(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    # A date without a zone is UTC, as everywhere in Holdfast.
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


def _limit(text: str) -> int:
    number = int(text)
    if not 1 <= number <= _LIMIT_MAX:
        raise argparse.ArgumentTypeError(f"must be 1 to {_LIMIT_MAX}")
    return number
