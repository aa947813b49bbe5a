"""Rows that cannot be handled as they are: told of loudly, and tried again ever more rarely."""

from __future__ import annotations

import logging

from service.observability.metrics import catalogue as metrics
from service.payments.leases.schedule import next_look_up_s

log = logging.getLogger(__name__)

# A bug or a value that no column holds waits for a person or a new version, not for a second.
PARKED_MIN_S = 60.0


def park(error: Exception, doubt_age_s: float | None, *, payment_id: str) -> float:
    """Tell of what stopped the row; the seconds until the row is tried again.

    Without a pause its lease would end and it would be tried every few seconds, for ever.
    """
    metrics.rows_parked_total.inc()
    log.error("reconciler.parked", extra={"payment_id": payment_id}, exc_info=error)
    return max(PARKED_MIN_S, next_look_up_s(doubt_age_s))
