"""Limits a merchant's open payments, with a periodic count, so that no payment pays for it."""

from __future__ import annotations

import logging

from service.database.pool.pool import ConnectionPool, Statement
from service.payments.charge.statements import OPEN_PAYMENTS
from service.resilience.deadline import Deadline

log = logging.getLogger(__name__)

# The interval of the figures; workers read the mark with the API key, which they cache for 5 s. The
# limit may be exceeded by the payments of these seconds, and costs a payment nothing: an exact
# count would be one row with contention between all of a merchant's payments.
EVERY_S = 5.0

# Reserved money (requires_capture) is settled: only payments that need further work count.
_MARK = Statement(
    "mark_too_many_open",
    f"""
    WITH many AS (
        SELECT merchant_id FROM {OPEN_PAYMENTS} AS open
        WHERE status <> 'requires_capture'
        GROUP BY merchant_id HAVING count(*) >= %(most)s::integer
    )
    UPDATE merchants m SET has_too_many_open = NOT m.has_too_many_open
    WHERE m.has_too_many_open <> (m.merchant_id IN (SELECT merchant_id FROM many))
    RETURNING m.merchant_id, m.has_too_many_open
    """,
)


class OpenLimit:
    """Marks the merchants with `most` open payments, and removes the mark again."""

    def __init__(self, pool: ConnectionPool, *, most: int) -> None:
        self._pool = pool
        self._most = most

    def mark(self, deadline: Deadline) -> None:
        """Update the marks; any number of processes may call it."""
        for merchant_id, has_too_many in self._pool.run(_MARK, {"most": self._most}, deadline):
            log.warning(
                "merchant.too_many_open" if has_too_many else "merchant.open_again",
                extra={"merchant_id": str(merchant_id)},
            )
