"""The mode of a database's money: payments made with a test key are never sent with a live key."""

from __future__ import annotations

import json
from typing import Literal

from service.database.direct import cursor_to
from service.payments import audit
from service.payments.audit import Entry

_NAME = "provider_mode"


class ModeConflict(Exception):
    """Payments of the other mode are still open; the message says so in one sentence."""


def claim_mode(dsn: str, mode: Literal["test", "live"]) -> None:
    """Store the mode of this database's payments, or compare it with the stored one.

    It changes only when no payment of the other mode is left for the background to send. Raises
    ModeConflict, or Unreachable without a database. An unmigrated database has no payments.
    """
    with cursor_to(dsn) as cursor:
        cursor.execute("SELECT to_regclass('movements') IS NOT NULL")
        if not cursor.fetchall()[0][0]:
            return
        cursor.execute(
            "INSERT INTO background_runs (name, detail) VALUES (%s, %s)"
            " ON CONFLICT (name) DO NOTHING",
            (_NAME, json.dumps({"mode": mode})),
        )
        cursor.execute("SELECT detail ->> 'mode' FROM background_runs WHERE name = %s", (_NAME,))
        ((found,),) = cursor.fetchall()
        if found == mode:
            return
        # Each query reads one row of a partial index.
        cursor.execute(
            "SELECT EXISTS (SELECT 1 FROM payments WHERE status = 'accepted' AND due_at IS NOT NULL)"
            " OR EXISTS (SELECT 1 FROM payments"
            "            WHERE status <> 'accepted' AND due_at IS NOT NULL)"
            " OR EXISTS (SELECT 1 FROM movements WHERE due_at IS NOT NULL)"
        )
        if cursor.fetchall()[0][0]:
            raise ModeConflict(
                f"STRIPE_API_KEY is of {mode} mode, but open payments of this database were made in"
                f" {found} mode: settle them with the old key, or use another database."
            )
        change = {"from": found, "to": mode}
        cursor.execute(
            f"""
            WITH changed AS (
                UPDATE background_runs SET detail = %(new)s::jsonb
                WHERE name = %(name)s AND detail ->> 'mode' = %(old)s RETURNING 1
            )
            {audit.WRITE_SQL} SELECT {audit.WRITE_VALUES} FROM changed
            """,  # Only our own SQL is put in.
            {
                "name": _NAME,
                "old": found,
                "new": json.dumps({"mode": mode}),
                **audit.params_of(audit.cli_actor(), Entry("provider.mode_changed", detail=change)),
            },
        )
