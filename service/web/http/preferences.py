"""Reads the Prefer header (RFC 7240): `respond-async` and `wait=N`."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from time import sleep

from flask import request

from service.payments.charge.model import UNSETTLED, Payment
from service.resilience.deadline import Deadline

# Longest `wait=N` that is honoured; a client's own timeout is often 10 s.
LONGEST_WAIT_S = 10.0
# The interval of a waiting GET's reads; the connection is released between them.
LOOK_EVERY_S = 0.2
# Reserved for the last read and the answer when the deadline ends the wait.
ANSWER_NEEDS_S = 0.5

# Names of preferences are the same in any case (RFC 7240, section 2).
_WAIT = re.compile(r"\bwait\s*=\s*\"?(\d{1,4})\b", re.IGNORECASE)
_RESPOND_ASYNC = re.compile(r"(?:^|[,;\s])respond-async(?:$|[,;\s])", re.IGNORECASE)


def prefers_async() -> bool:
    """Whether the caller prefers 202 as soon as the payment is stored."""
    preference = request.headers.get("Prefer")
    return preference is not None and asks_for_async(preference)


def asks_for_async(preference: str) -> bool:
    """Whether a Prefer header contains `respond-async`."""
    return _RESPOND_ASYNC.search(preference) is not None


class Waiting:
    """GET calls that wait for a payment to settle, at most a few of a worker's threads at once."""

    def __init__(self, *, waiters: int) -> None:
        self._slots = threading.BoundedSemaphore(waiters)

    def until_settled(
        self, look: Callable[[Deadline], Payment | None], deadline: Deadline
    ) -> tuple[Payment | None, bool]:
        """Read now, and again for as long as the caller prefers: (payment, the wait was honoured).

        With the maximum of waiters the first read is the answer.
        """
        payment = look(deadline)
        wait_s = parse_wait_s(request.headers.get("Prefer", ""))
        if payment is None or wait_s <= 0 or not self._slots.acquire(blocking=False):
            return payment, False
        try:
            end = deadline.within(min(wait_s, deadline.remaining_s() - ANSWER_NEEDS_S))
            while payment is not None and payment.status in UNSETTLED and not end.expired:
                sleep(min(LOOK_EVERY_S, end.remaining_s()))
                payment = look(deadline)
            return payment, True
        finally:
            self._slots.release()


def parse_wait_s(preference: str) -> float:
    """The wait in a Prefer header, at most LONGEST_WAIT_S; 0.0 without one."""
    match = _WAIT.search(preference)
    return min(LONGEST_WAIT_S, float(match[1])) if match is not None else 0.0
