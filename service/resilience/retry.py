"""Retries a call within its request: few times, with full jitter, and not while a provider is down.

The only module that imports `backoff`, which gives the loop, the exponential pauses and the jitter;
deadline, Retry-After and budget are implemented in the generator of its pauses.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from dataclasses import dataclass
from time import monotonic
from typing import Any, Generic, TypeVar, cast

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
        # No `max_time`: backoff's uses the wall clock and ignores the call that is running.
        repeat = backoff.on_predicate(
            # Its type says that no value is sent in; its code sends each result.
            cast("Any", self._pauses),
            lambda call: call.again is not None,
            max_tries=1 + retries_max,
            jitter=None,
            logger=None,
        )
        self._repeat = repeat(_Call.make)

    def run(
        self, attempt: Callable[[], T], deadline: Deadline, judge: Callable[[T], Again | None]
    ) -> T:
        """Call `attempt` until `judge` is content or tries, time or budget end; the last result."""
        self._budget.deposit()
        call = _Call(attempt, deadline, judge)
        self._repeat(call)
        return call.result

    def _pauses(self) -> Generator[float, _Call[Any], None]:
        """backoff sends each result in and sleeps for the yielded pause; the end means give up."""
        exponential = backoff.expo(base=2, factor=_PAUSE_FIRST_S, max_value=_PAUSE_MAX_S)
        next(exponential)
        call = yield 0.0
        while True:
            again, pause_s = call.again, backoff.full_jitter(next(exponential))
            if again is None:
                return
            if again.after_s is not None:
                pause_s += again.after_s
            if pause_s + _CALL_S > call.deadline.remaining_s() or not self._budget.withdraw():
                return
            metrics.provider_retries_total.labels(provider=self._name, reason=again.reason).inc()
            call = yield pause_s


class _Call(Generic[T]):
    """One call with all its attempts; backoff's decorated function takes and returns it."""

    __slots__ = ("_attempt", "_judge", "again", "deadline", "result")

    def __init__(
        self, attempt: Callable[[], T], deadline: Deadline, judge: Callable[[T], Again | None]
    ) -> None:
        self._attempt = attempt
        self._judge = judge
        self.deadline = deadline
        self.again: Again | None = None
        self.result: T

    def make(self) -> _Call[T]:
        self.result = self._attempt()
        self.again = self._judge(self.result)
        return self
