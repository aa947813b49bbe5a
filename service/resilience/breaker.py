"""Stops calling a provider that is down, for all processes of the host at once.

`circuitbreaker` gives the class, the words for the states, the error and the decorator; what it
lacks stands here (docs/decisions/0002 tells why). Each turn of the breaker begins a new generation,
and a call reports into the generation that let it through: what a straggler of an older one says
is ignored, whether it is good news or bad.
"""

from __future__ import annotations

import contextlib
import logging
import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import Any, Literal

from circuitbreaker import (  # type: ignore[import-untyped]
    STATE_CLOSED,
    STATE_HALF_OPEN,
    STATE_OPEN,
    CircuitBreaker,
    CircuitBreakerError,
)

from service.observability import metrics
from service.resilience.board import SLOT_STARTS, Board
from service.resilience.window import Tally, Window

log = logging.getLogger(__name__)

_STATES = (STATE_CLOSED, STATE_OPEN, STATE_HALF_OPEN)
_CLOSED, _OPEN, _HALF_OPEN = 0.0, 1.0, 2.0
_NO_CALLS = Tally()
# Pauses are stretched by up to this, or shortened as much.
_JITTER_MAX = 1.2

# The common cells of the board.
_GENERATION = 1
_STATE = 2
_SINCE = 3  # the last turn
_OPEN_UNTIL = 4
_PROBE_UNTIL = 5  # the end of the prober's lease
_CLOSED_AT = 6
_RELAPSES = 7  # openings in a row that came right after a closing


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerRules:
    """When to open, for how long, and when a probe counts as lost."""

    # Twice what the bulkhead lets in, no more: else a house full of hung calls is outvoted by the
    # good ones before them.
    window_calls: float = 20
    window_s: float = 10.0
    # Fewer calls prove nothing.
    minimum_calls: int = 10
    failure_rate: float = 0.5
    # A call this slow is slow even when it succeeds.
    slow_s: float = 3.0
    slow_rate: float = 0.8
    # Between two probes. A probe is one cheap look-up a host, so it may come often: the first
    # payment goes through within 2 s of the provider's return.
    open_s: float = 0.75
    # A relapse costs real payments a timeout, so each doubles the pause; no more than this, for
    # recovery within 5 s.
    open_max_s: float = 4.0
    # A prober that has not reported by then is dead or stuck, and the next may go.
    probe_lease_s: float = 1.5


# For the rehearsal that must fail: as many calls as this are never in the window.
NEVER_OPENS = BreakerRules(minimum_calls=1_000_000)


class BreakerOpen(CircuitBreakerError):  # type: ignore[misc]
    """The call was not made: the breaker is open, or another call is probing."""


class Breaker(CircuitBreaker):  # type: ignore[misc]
    """One provider's breaker in one process; those with the same `board_path` act as one.

    Without a path, or where the file cannot be had, it works alone in this process. Any number of
    threads may use it (not coroutines). Make it after the fork.
    """

    def __init__(
        self,
        name: str,
        *,
        rules: BreakerRules | None = None,
        board_path: Path | None = None,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        super().__init__(name=name)
        self._rules = rules or BreakerRules()
        self._clock = clock
        self._board = Board(board_path)
        self._cells = self._board.cells
        self._windows = {start: self._window(start) for start in SLOT_STARTS}
        self._lock = threading.Lock()
        self._entered = threading.local()
        self._refusals = metrics.breaker_refusals_total.labels(provider=name)
        self._open_seconds = metrics.breaker_open_seconds_total.labels(provider=name)
        self._seen = -1.0
        self._notice()

    def _window(self, start: int) -> Window:
        # The first cell of a slot is the process.
        rules = self._rules
        return Window(
            self._cells, start + 1, window_s=rules.window_s, window_calls=rules.window_calls
        )

    # --- One call ---------------------------------------------------------------------------

    def admit(self, *, may_probe: bool = False) -> Permit:
        """Let a call through or raise BreakerOpen; `may_probe`: it moves nothing and may be lost."""
        cells = self._cells
        generation = cells[_GENERATION]
        if generation != self._seen:
            self._notice()
        if cells[_STATE] == _CLOSED:
            return Permit(self, generation, is_probe=False)
        permit = self._lease_probe() if may_probe else None
        if permit is None:
            self._refusals.inc()
            raise BreakerOpen(self)
        return permit

    def _lease_probe(self) -> Permit | None:
        """The one probe a host may have; None: not yet, or somebody else has it."""
        if not self.probe_is_due:
            return None
        with self._lock, self._board.exclusive() as is_mine:
            if not is_mine or not self.probe_is_due:
                return None
            now_s = self._clock()
            # Before the state: whoever dies in between leaves a lease that ends.
            self._cells[_PROBE_UNTIL] = now_s + self._rules.probe_lease_s
            turn = self._turn(_HALF_OPEN, now_s, reason="probe")
            permit = Permit(self, self._cells[_GENERATION], is_probe=True)
        self._announce(turn)
        return permit

    def _record(self, permit: Permit, *, failed: bool | None) -> None:
        """What became of a call; None: it says nothing about the provider."""
        now_s = self._clock()
        if permit.is_probe:
            turn = self._judge_probe(permit, now_s, failed=failed)
        elif failed is None:
            return
        else:
            slow = now_s - permit.began_s >= self._rules.slow_s
            turn = self._judge_call(permit, now_s, failed=failed, slow=slow)
        if turn is not None:
            self._announce(turn)

    def _judge_call(
        self, permit: Permit, now_s: float, *, failed: bool, slow: bool
    ) -> _Turn | None:
        with self._lock:
            if self._cells[_GENERATION] != permit.generation or self._cells[_STATE] != _CLOSED:
                return None
            own = self._windows[self._board.own]
            own.add(now_s, permit.generation, failed=failed, slow=slow)
            if not failed and not slow:
                return None
            # Its own calls are reason enough: a busy worker's failures must not be outvoted by the
            # good calls that a quiet one made before the outage.
            tally = own.tally(now_s, permit.generation)
            reason = self._reason_to_open(tally)
            if reason is None:
                tally = self._host_tally(now_s, permit.generation)
                reason = self._reason_to_open(tally)
            if reason is None:
                return None
            with self._turning(permit) as is_mine:
                return self._open(now_s, reason, tally) if is_mine else None

    def _reason_to_open(self, tally: Tally) -> str | None:
        rules = self._rules
        if tally.calls < rules.minimum_calls:
            return None
        if tally.failures >= rules.failure_rate * tally.calls:
            return "failure_rate"
        if tally.slow >= rules.slow_rate * tally.calls:
            return "slow_rate"
        return None

    def _host_tally(self, now_s: float, generation: float) -> Tally:
        total = _NO_CALLS
        for start in self._board.taken():
            total = total.plus(self._windows[start].tally(now_s, generation))
        return total

    def _judge_probe(self, permit: Permit, now_s: float, *, failed: bool | None) -> _Turn | None:
        with self._lock, self._turning(permit) as is_mine:
            if not is_mine:
                return None
            if failed is False:
                self._cells[_CLOSED_AT] = now_s
                return self._turn(_CLOSED, now_s, reason="probe_succeeded")
            self._hold_open(now_s, self._rules.open_s)
            return self._turn(
                _OPEN, now_s, reason="probe_failed" if failed else "probe_said_nothing"
            )

    # --- The turns --------------------------------------------------------------------------

    @contextlib.contextmanager
    def _turning(self, permit: Permit) -> Iterator[bool]:
        """True: no other process can turn the breaker, and none has since the permit was given."""
        with self._board.exclusive() as is_mine:
            yield is_mine and self._cells[_GENERATION] == permit.generation

    def _open(self, now_s: float, reason: str, tally: Tally) -> _Turn:
        cells = self._cells
        is_relapse = cells[_CLOSED_AT] > 0.0 and now_s - cells[_CLOSED_AT] < self._rules.window_s
        cells[_RELAPSES] = cells[_RELAPSES] + 1 if is_relapse else 0.0
        hold_s = min(self._rules.open_max_s, self._rules.open_s * 2 ** min(cells[_RELAPSES], 16))
        self._hold_open(now_s, hold_s)
        return self._turn(_OPEN, now_s, reason=reason, tally=tally)

    def _hold_open(self, now_s: float, hold_s: float) -> None:
        # Jitter, so that the machines behind one balancer do not probe in step.
        self._cells[_OPEN_UNTIL] = now_s + hold_s * random.uniform(2 - _JITTER_MAX, _JITTER_MAX)  # noqa: S311
        self._cells[_PROBE_UNTIL] = 0.0

    def _turn(self, state: float, now_s: float, *, reason: str, tally: Tally = _NO_CALLS) -> _Turn:
        """Change the state, in the board's lock; what is said about it is said outside."""
        cells = self._cells
        was, since_s = cells[_STATE], cells[_SINCE]
        cells[_STATE] = state
        cells[_SINCE] = now_s
        cells[_GENERATION] += 1
        return _Turn(_word(was), _word(state), reason, now_s - since_s, self.open_remaining, tally)

    def _announce(self, turn: _Turn) -> None:
        """Metrics and log of a turn that this process made; each is made by one process only."""
        self._notice()
        if turn.from_state != STATE_CLOSED:
            self._open_seconds.inc(max(0.0, turn.lasted_s))
        if turn.from_state == turn.to_state:
            return
        metrics.breaker_transitions_total.labels(
            provider=self.name, from_state=turn.from_state, to_state=turn.to_state
        ).inc()
        extra = {
            "provider": self.name,
            "from_state": turn.from_state,
            "reason": turn.reason,
            "calls": int(turn.tally.calls),
            "failures": int(turn.tally.failures),
            "slow": int(turn.tally.slow),
            "open_s": round(turn.open_s, 3),
        }
        if turn.to_state == STATE_OPEN and turn.from_state == STATE_CLOSED:
            log.warning("breaker.opened", extra=extra)
        elif turn.to_state == STATE_OPEN:
            log.info("breaker.probe_failed", extra=extra)
        elif turn.to_state == STATE_HALF_OPEN:
            log.info("breaker.half_open", extra=extra)
        else:
            log.warning("breaker.closed", extra=extra)

    def _notice(self) -> None:
        """Show the state in the metrics, whichever process turned it."""
        self._seen = self._cells[_GENERATION]
        now = _word(self._cells[_STATE])
        for state in _STATES:
            metrics.breaker_state.labels(provider=self.name, state=state).set(state == now)

    # --- What people and the base class ask ---------------------------------------------------

    @property
    def probe_is_due(self) -> bool:
        """Whether a probe would be let through now; the lease is still to be had."""
        cells, state = self._cells, self._cells[_STATE]
        if state == _CLOSED:
            return False
        if state == _OPEN:
            until_s, longest_s = cells[_OPEN_UNTIL], _JITTER_MAX * self._rules.open_max_s
        else:
            until_s, longest_s = cells[_PROBE_UNTIL], self._rules.probe_lease_s
        # A moment too far off is not from this boot: it must not keep the breaker open.
        return not 0.0 < until_s - self._clock() <= longest_s

    @property
    def state(self) -> str:
        """closed, open, or half_open: being probed, or due to be."""
        if self._cells[_GENERATION] != self._seen:
            self._notice()
        if self._cells[_STATE] == _OPEN and self.probe_is_due:
            return str(STATE_HALF_OPEN)
        return _word(self._cells[_STATE])

    @property
    def closed(self) -> bool:
        """Whether every call is let through."""
        if self._cells[_GENERATION] != self._seen:
            self._notice()
        return bool(self._cells[_STATE] == _CLOSED)

    @property
    def open_remaining(self) -> float:
        """Seconds until the next probe; 0 while closed or due."""
        if self._cells[_STATE] == _CLOSED:
            return 0.0
        until_s = max(self._cells[_OPEN_UNTIL], self._cells[_PROBE_UNTIL])
        return max(0.0, until_s - self._clock())

    @property
    def failure_count(self) -> int:
        """Failures in the window, of all processes."""
        return int(self._host_tally(self._clock(), self._cells[_GENERATION]).failures)

    def reset(self) -> None:
        """Close it by hand, for the whole host."""
        with self._lock, self._board.exclusive() as is_mine:
            if not is_mine or self._cells[_STATE] == _CLOSED:
                return
            turn = self._turn(_CLOSED, self._clock(), reason="reset")
        self._announce(turn)

    def __enter__(self) -> None:
        """As the base class' `call` and decorator use it, but refusing while open."""
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
        """Leave the board; the breaker cannot be used afterwards."""
        self._board.close()


class Permit:
    """One call let through: say once what became of it; a block left without a word says nothing."""

    __slots__ = ("_breaker", "_is_recorded", "began_s", "generation", "is_probe")

    def __init__(self, breaker: Breaker, generation: float, *, is_probe: bool) -> None:
        self._breaker = breaker
        self._is_recorded = False
        self.generation = generation
        self.is_probe = is_probe
        self.began_s = breaker._clock()

    @property
    def state(self) -> str:
        """The breaker's state as this call met it."""
        return str(STATE_HALF_OPEN if self.is_probe else STATE_CLOSED)

    @property
    def is_current(self) -> bool:
        """False once the breaker has turned: what this call does now nobody waits for."""
        return bool(self._breaker._cells[_GENERATION] == self.generation)

    def record(self, *, failed: bool | None) -> None:
        """Count the call, once; None: it says nothing about the provider."""
        if not self._is_recorded:
            self._is_recorded = True
            self._breaker._record(self, failed=failed)

    def __enter__(self) -> Permit:
        return self

    def __exit__(self, *exc: Any) -> None:
        self.record(failed=None)


@dataclass(frozen=True, slots=True)
class _Turn:
    from_state: str
    to_state: str
    reason: str
    lasted_s: float
    open_s: float
    tally: Tally


def _word(state: float) -> str:
    return str(_STATES[int(state)])
