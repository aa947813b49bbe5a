"""Parks rows that raise an error: reports them, and retries them with growing pauses."""

from __future__ import annotations

import logging

from service.observability.metrics import catalogue as metrics
from service.payments.leases.schedule import next_look_up_s

log = logging.getLogger(__name__)

# A bug or a value that no column accepts needs a person or a new version, not another second.
PARKED_MIN_S = 60.0


def park(error: Exception, doubt_age_s: float | None, *, payment_id: str) -> float:
    """Log the error of a row; returns the seconds until its next try.

    Without a pause its lease would end and it would be retried every few seconds, without end.
    """
    metrics.rows_parked_total.inc()
    log.error("reconciler.parked", extra={"payment_id": payment_id}, exc_info=error)
    return max(PARKED_MIN_S, next_look_up_s(doubt_age_s))
