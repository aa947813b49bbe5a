"""Retries a call within its request: few times, with full jitter, and not while a provider is down.

The only module that imports `backoff`, for its jitter. The loop is ours: backoff's measures time by the
wall clock, and knows neither the request's deadline nor the provider's Retry-After nor a budget.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic
from typing import TypeVar

import backoff

from service.observability.metrics import catalogue as metrics
from service.resilience.deadline import Deadline

T = TypeVar("T")

# Beyond this the reconciler should try: the payer is waiting.
_RETRIES_MAX = 2
_PAUSE_FIRST_S = 0.1
_PAUSE_MAX_S = 1.0
# A call begun with less time would only time out, and turn certainty into doubt.
_CALL_S = 0.5


@dataclass(frozen=True, slots=True)
class Again:
    """A result after which the call may be repeated; `reason` is a label from a closed set."""

    reason: str
    # The provider's Retry-After: wait that long, or give the call up.
    after_s: float | None = None


class RetryBudget:
    """Retries add at most a tenth to the calls, however many of them fail.

    A token bucket: each call puts in a tenth of a token, each retry takes a whole one.
    """

    def __init__(
        self,
        *,
        share: float = 0.1,
        # The savings of 100 calls: enough for a short failure, too few for a storm.
        tokens_max: float = 10.0,
        # A quiet service could never retry: after this long without a retry, one is free.
        quiet_s: float = 10.0,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._share = share
        self._tokens_max = tokens_max
        self._quiet_s = quiet_s
        self._clock = clock
        self._lock = threading.Lock()
        self._tokens = 1.0
        self._spent_at_s = clock()
        self._show()

    def deposit(self) -> None:
        """Count one call."""
        with self._lock:
            if self._tokens < self._tokens_max:
                self._tokens = min(self._tokens_max, self._tokens + self._share)
                self._show()

    def withdraw(self) -> bool:
        """Pay for one retry; False: the budget is empty."""
        with self._lock:
            now_s = self._clock()
            if self._tokens < 1.0 and now_s - self._spent_at_s < self._quiet_s:
                return False
            self._tokens = max(1.0, self._tokens) - 1.0
            self._spent_at_s = now_s
            self._show()
            return True

    def _show(self) -> None:
        metrics.retry_budget_remaining_ratio.set(self._tokens / self._tokens_max)


class Retry:
    """Repeats calls to one provider under one budget. Any number of threads may use it."""

    def __init__(
        self, name: str, *, budget: RetryBudget | None = None, retries_max: int = _RETRIES_MAX
    ) -> None:
        self._name = name
        self._budget = budget or RetryBudget()
        self._retries_max = retries_max

    def run(
        self, attempt: Callable[[], T], deadline: Deadline, judge: Callable[[T], Again | None]
    ) -> T:
        """Call `attempt` until `judge` is content or tries, time or budget end; the last result."""
        self._budget.deposit()
        result = attempt()
        pause_max_s = _PAUSE_FIRST_S
        for _ in range(self._retries_max):
            again = judge(result)
            if again is None:
                return result
            pause_s = backoff.full_jitter(pause_max_s) + (again.after_s or 0.0)
            if pause_s + _CALL_S > deadline.remaining_s() or not self._budget.withdraw():
                return result
            metrics.provider_retries_total.labels(provider=self._name, reason=again.reason).inc()
            time.sleep(pause_s)
            result = attempt()
            pause_max_s = min(2 * pause_max_s, _PAUSE_MAX_S)
        return result
