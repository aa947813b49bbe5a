"""Reads due rows of merchants for the free places of a process."""

from __future__ import annotations

from service.database.pool.pool import ConnectionPool, Statement
from service.payments.leases.fair_share import NO_OWNER, Due, FairShare
from service.resilience.deadline import Deadline


def pick_due(
    pool: ConnectionPool,
    turn: FairShare,
    *,
    oldest: Statement,
    of_merchants: Statement,
    provider: str | None,
    limit: int,
    deadline: Deadline,
) -> list[Due]:
    """Up to `limit` rows, merchants in turn; `provider` is the one that this process serves."""

    def read_oldest(most: int) -> list[Due]:
        rows = pool.run(oldest, {"limit": most}, deadline)
        return [
            Due((str(merchant_id),), str(row_id), provider in (None, row_provider))
            for merchant_id, row_id, row_provider in rows
        ]

    def read_behind(owner: tuple[str, ...] | None) -> list[Due]:
        values = {
            "after": owner[0] if owner else str(NO_OWNER),
            "provider": provider,
            "places": limit,
            "limit": limit * limit,
        }
        rows = pool.run(of_merchants, values, deadline)
        return [Due((str(merchant_id),), str(row_id)) for merchant_id, row_id in rows]

    return turn.pick(limit, read_oldest, read_behind)
