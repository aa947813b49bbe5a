"""Stops calls to a failing provider, for all processes of the host at once.

`circuitbreaker` gives the class, the names of the states, the error and the decorator; this module
adds the rest (docs/decisions/0002 gives the reasons). Each transition begins a new generation, and
a call reports into the generation that admitted it: a late report from an older generation is
ignored, whether it is a success or a failure.
"""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import Any, Literal

from circuitbreaker import (  # type: ignore[import-untyped]
    STATE_CLOSED,
    STATE_HALF_OPEN,
    CircuitBreaker,
    CircuitBreakerError,
)

from service.observability.metrics import catalogue as metrics
from service.resilience.breaker.rules import BreakerRules
from service.resilience.breaker.shared_state import SLOT_STARTS, SharedState
from service.resilience.breaker.transitions import STATES, BreakerTransition, show_state
from service.resilience.breaker.window import CallWindow, Tally

_CLOSED, _OPEN, _HALF_OPEN = 0.0, 1.0, 2.0
_NO_CALLS = Tally()
# Jitter stretches or shortens each pause by up to this factor.
_JITTER_MAX = 1.2

# The common numbers of the shared state.
_GENERATION = 1
_STATE = 2
_SINCE = 3  # time of the last transition
_OPEN_UNTIL = 4
_PROBE_UNTIL = 5  # the end of the prober's lease
_CLOSED_AT = 6
_RELAPSES = 7  # openings in a row that came right after a closing


class BreakerOpen(CircuitBreakerError):  # type: ignore[misc]
    """The call was not made: the breaker is open, or another call is probing."""


class Breaker(CircuitBreaker):  # type: ignore[misc]
    """One provider's breaker in one process; breakers with the same `page_path` share their state.

    Without a path, or where the file cannot be opened, the state is private. Any number of threads
    may use it (not coroutines). Create it after the fork.
    """

    def __init__(
        self,
        name: str,
        *,
        rules: BreakerRules | None = None,
        page_path: Path | None = None,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        super().__init__(name=name)
        self._rules = rules or BreakerRules()
        self._clock = clock
        self._shared = SharedState(page_path)
        self._numbers = self._shared.numbers
        self._windows = {start: self._window(start) for start in SLOT_STARTS}
        self._lock = threading.Lock()
        self._entered = threading.local()
        self._refusals = metrics.breaker_refusals_total.labels(provider=name)
        self._seen = -1.0
        self._publish()

    def _window(self, start: int) -> CallWindow:
        # The first cell of a slot is the process id.
        rules = self._rules
        return CallWindow(
            self._numbers, start + 1, window_s=rules.window_s, window_calls=rules.window_calls
        )

    # --- One call ---------------------------------------------------------------------------

    def admit(self, *, may_probe: bool = False) -> Permit:
        """Admit a call or raise BreakerOpen; `may_probe`: it moves no money, so its loss is harmless."""
        numbers = self._numbers
        generation = numbers[_GENERATION]
        if generation != self._seen:
            self._publish()
        if numbers[_STATE] == _CLOSED:
            return Permit(self, generation, is_probe=False)
        permit = self._lease_probe() if may_probe else None
        if permit is None:
            self._refusals.inc()
            raise BreakerOpen(self)
        return permit

    def _lease_probe(self) -> Permit | None:
        """The host's only probe; None: too early, or another process holds the lease."""
        if not self.probe_is_due:
            return None
        with self._lock, self._shared.exclusive() as is_mine:
            if not is_mine or not self.probe_is_due:
                return None
            now_s = self._clock()
            # Written before the state: a process that dies in between leaves a lease that expires.
            self._numbers[_PROBE_UNTIL] = now_s + self._rules.probe_lease_s
            transition = self._transition(_HALF_OPEN, now_s, reason="probe")
            permit = Permit(self, self._numbers[_GENERATION], is_probe=True)
        self._emit(transition)
        return permit

    def _record(self, permit: Permit, *, failed: bool | None) -> None:
        """The result of a call; None: it proves nothing about the provider."""
        now_s = self._clock()
        if permit.is_probe:
            transition = self._judge_probe(permit, now_s, failed=failed)
        elif failed is None:
            return
        else:
            slow = now_s - permit.began_s >= self._rules.slow_s
            transition = self._judge_call(permit, now_s, failed=failed, slow=slow)
        if transition is not None:
            self._emit(transition)

    def _judge_call(
        self, permit: Permit, now_s: float, *, failed: bool, slow: bool
    ) -> BreakerTransition | None:
        with self._lock:
            if self._numbers[_GENERATION] != permit.generation or self._numbers[_STATE] != _CLOSED:
                return None
            own = self._windows[self._shared.own]
            own.add(now_s, permit.generation, failed=failed, slow=slow)
            if not failed and not slow:
                return None
            # A worker's own calls are sufficient: a quiet worker's successes before the outage must not
            # outvote a busy worker's failures.
            tally = own.tally(now_s, permit.generation)
            reason = self._rules.reason_to_open(tally)
            if reason is None:
                tally = self._host_tally(now_s, permit.generation)
                reason = self._rules.reason_to_open(tally)
            if reason is None:
                return None
            with self._exclusive_transition(permit) as is_mine:
                return self._open(now_s, reason, tally) if is_mine else None

    def _host_tally(self, now_s: float, generation: float) -> Tally:
        total = _NO_CALLS
        for start in self._shared.taken():
            total = total.plus(self._windows[start].tally(now_s, generation))
        return total

    def _judge_probe(
        self, permit: Permit, now_s: float, *, failed: bool | None
    ) -> BreakerTransition | None:
        with self._lock, self._exclusive_transition(permit) as is_mine:
            if not is_mine:
                return None
            if failed is False:
                self._numbers[_CLOSED_AT] = now_s
                return self._transition(_CLOSED, now_s, reason="probe_succeeded")
            self._hold_open(now_s, self._rules.open_s)
            return self._transition(
                _OPEN, now_s, reason="probe_failed" if failed else "probe_said_nothing"
            )

    # --- Transitions ------------------------------------------------------------------------

    @contextlib.contextmanager
    def _exclusive_transition(self, permit: Permit) -> Iterator[bool]:
        """True: no other process can change the state, and none has since the permit was given."""
        with self._shared.exclusive() as is_mine:
            yield is_mine and self._numbers[_GENERATION] == permit.generation

    def _open(self, now_s: float, reason: str, tally: Tally) -> BreakerTransition:
        numbers = self._numbers
        is_relapse = (
            numbers[_CLOSED_AT] > 0.0 and now_s - numbers[_CLOSED_AT] < self._rules.window_s
        )
        numbers[_RELAPSES] = numbers[_RELAPSES] + 1 if is_relapse else 0.0
        hold_s = min(self._rules.open_max_s, self._rules.open_s * 2 ** min(numbers[_RELAPSES], 16))
        self._hold_open(now_s, hold_s)
        return self._transition(_OPEN, now_s, reason=reason, tally=tally)

    def _hold_open(self, now_s: float, hold_s: float) -> None:
        # Jitter keeps the machines behind one balancer from probing at the same moment.
        self._numbers[_OPEN_UNTIL] = now_s + hold_s * random.uniform(2 - _JITTER_MAX, _JITTER_MAX)  # noqa: S311
        self._numbers[_PROBE_UNTIL] = 0.0

    def _transition(
        self, state: float, now_s: float, *, reason: str, tally: Tally = _NO_CALLS
    ) -> BreakerTransition:
        """Change the state while holding the page's lock; metrics and log follow outside the lock."""
        numbers = self._numbers
        was, since_s = numbers[_STATE], numbers[_SINCE]
        numbers[_STATE] = state
        numbers[_SINCE] = now_s
        numbers[_GENERATION] += 1
        return BreakerTransition(
            _word(was), _word(state), reason, now_s - since_s, self.open_remaining, tally
        )

    def _emit(self, transition: BreakerTransition) -> None:
        self._publish()
        transition.emit(self.name)

    def _publish(self) -> None:
        """Show the state in the metrics, whichever process changed it."""
        self._seen = self._numbers[_GENERATION]
        show_state(self.name, _word(self._numbers[_STATE]))

    # --- Queries, and the base class' interface -------------------------------------------------

    @property
    def probe_is_due(self) -> bool:
        """Whether a probe would be admitted now; the lease must still be taken."""
        numbers, state = self._numbers, self._numbers[_STATE]
        if state == _CLOSED:
            return False
        if state == _OPEN:
            until_s, longest_s = numbers[_OPEN_UNTIL], _JITTER_MAX * self._rules.open_max_s
        else:
            until_s, longest_s = numbers[_PROBE_UNTIL], self._rules.probe_lease_s
        # A moment too far away is from another boot: it must not keep the breaker open.
        return not 0.0 < until_s - self._clock() <= longest_s

    @property
    def state(self) -> str:
        """closed, open, or half_open: a probe is in flight or due."""
        if self._numbers[_GENERATION] != self._seen:
            self._publish()
        if self._numbers[_STATE] == _OPEN and self.probe_is_due:
            return str(STATE_HALF_OPEN)
        return _word(self._numbers[_STATE])

    @property
    def closed(self) -> bool:
        """Whether every call is admitted."""
        if self._numbers[_GENERATION] != self._seen:
            self._publish()
        return bool(self._numbers[_STATE] == _CLOSED)

    @property
    def open_remaining(self) -> float:
        """Seconds until the next probe; 0 while closed or due."""
        if self._numbers[_STATE] == _CLOSED:
            return 0.0
        until_s = max(self._numbers[_OPEN_UNTIL], self._numbers[_PROBE_UNTIL])
        return max(0.0, until_s - self._clock())

    @property
    def failure_count(self) -> int:
        """Failures in the window, of all processes."""
        return int(self._host_tally(self._clock(), self._numbers[_GENERATION]).failures)

    def reset(self) -> None:
        """Close it by hand, for the whole host."""
        with self._lock, self._shared.exclusive() as is_mine:
            if not is_mine or self._numbers[_STATE] == _CLOSED:
                return
            transition = self._transition(_CLOSED, self._clock(), reason="reset")
        self._emit(transition)

    def __enter__(self) -> None:
        """The interface of the base class' `call` and decorator, but refusing while open."""
        if not hasattr(self._entered, "permits"):
            self._entered.permits = []
        self._entered.permits.append(self.admit(may_probe=True))

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> Literal[False]:
        permit: Permit = self._entered.permits.pop()
        permit.record(failed=exc_type is not None and self.is_failure(exc_type, exc_value))
        return False

    def close(self) -> None:
        """Release the shared page; the breaker cannot be used afterwards."""
        self._shared.close()


class Permit:
    """One admitted call: report its result once; a block that ends without a report proves nothing."""

    __slots__ = ("_breaker", "_is_recorded", "began_s", "generation", "is_probe")

    def __init__(self, breaker: Breaker, generation: float, *, is_probe: bool) -> None:
        self._breaker = breaker
        self._is_recorded = False
        self.generation = generation
        self.is_probe = is_probe
        self.began_s = breaker._clock()

    @property
    def state(self) -> str:
        """The breaker's state when it admitted this call."""
        return str(STATE_HALF_OPEN if self.is_probe else STATE_CLOSED)

    @property
    def is_current(self) -> bool:
        """False after a transition: the result of this call no longer counts."""
        return bool(self._breaker._numbers[_GENERATION] == self.generation)

    def record(self, *, failed: bool | None) -> None:
        """Count the call, once; None: it proves nothing about the provider."""
        if not self._is_recorded:
            self._is_recorded = True
            self._breaker._record(self, failed=failed)

    def __enter__(self) -> Permit:
        return self

    def __exit__(self, *exc: Any) -> None:
        self.record(failed=None)


def _word(state: float) -> str:
    return str(STATES[int(state)])
