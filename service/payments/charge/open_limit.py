"""Keeps a merchant from opening payments without end: by the clock, so that no payment counts."""

from __future__ import annotations

import logging

from service.database.pool.pool import ConnectionPool, Statement
from service.resilience.deadline import Deadline

log = logging.getLogger(__name__)

# As often as the figures; workers learn of it with the API key, which they remember for 5 s. The
# limit is soft by what a merchant can send in these seconds, and a payment pays nothing for it:
# an exact count would be a row that all of a merchant's payments fight for.
EVERY_S = 5.0

# Reserved money (requires_capture) is settled: only what still needs somebody's work counts.
_MARK = Statement(
    "mark_too_many_open",
    """
    WITH many AS (
        SELECT merchant_id FROM payments
        WHERE status NOT IN ('succeeded', 'declined', 'not_executed', 'canceled', 'expired')
          AND status <> 'requires_capture'
        GROUP BY merchant_id HAVING count(*) >= %(most)s::integer
    )
    UPDATE merchants m SET has_too_many_open = NOT m.has_too_many_open
    WHERE m.has_too_many_open <> (m.merchant_id IN (SELECT merchant_id FROM many))
    RETURNING m.merchant_id, m.has_too_many_open
    """,
)


class OpenLimit:
    """Marks the merchants who have `most` payments open, and takes the mark away again."""

    def __init__(self, pool: ConnectionPool, *, most: int) -> None:
        self._pool = pool
        self._most = most

    def mark(self, deadline: Deadline) -> None:
        """Bring the marks up to date; any number of processes may."""
        for merchant_id, has_too_many in self._pool.run(_MARK, {"most": self._most}, deadline):
            log.warning(
                "merchant.too_many_open" if has_too_many else "merchant.open_again",
                extra={"merchant_id": str(merchant_id)},
            )
