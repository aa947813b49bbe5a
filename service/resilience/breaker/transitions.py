"""A transition of the breaker as a value, and its metrics and log line."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from circuitbreaker import (  # type: ignore[import-untyped]
    STATE_CLOSED,
    STATE_HALF_OPEN,
    STATE_OPEN,
)

from service.observability.metrics import catalogue as metrics
from service.resilience.breaker.window import Tally

# In the order of their numbers in the shared state.
STATES = (STATE_CLOSED, STATE_OPEN, STATE_HALF_OPEN)

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class BreakerTransition:
    """One change of the state, or a failed probe, after which it stays open."""

    from_state: str
    to_state: str
    reason: str
    lasted_s: float
    open_s: float
    tally: Tally

    def emit(self, provider: str) -> None:
        """Count and log it; exactly one process makes each transition, and only that one calls this."""
        if self.from_state != STATE_CLOSED:
            metrics.breaker_open_seconds_total.labels(provider=provider).inc(
                max(0.0, self.lasted_s)
            )
        if self.from_state == self.to_state:
            return
        metrics.breaker_transitions_total.labels(
            provider=provider, from_state=self.from_state, to_state=self.to_state
        ).inc()
        extra = {
            "provider": provider,
            "from_state": self.from_state,
            "reason": self.reason,
            "calls": int(self.tally.calls),
            "failures": int(self.tally.failures),
            "slow": int(self.tally.slow),
            "open_s": round(self.open_s, 3),
        }
        if self.to_state == STATE_OPEN and self.from_state == STATE_CLOSED:
            log.warning("breaker.opened", extra=extra)
        elif self.to_state == STATE_OPEN:
            log.info("breaker.probe_failed", extra=extra)
        elif self.to_state == STATE_HALF_OPEN:
            log.info("breaker.half_open", extra=extra)
        else:
            log.warning("breaker.closed", extra=extra)


def show_state(provider: str, now: str) -> None:
    """Show the state in the metrics, whichever process changed it."""
    for state in STATES:
        metrics.breaker_state.labels(provider=provider, state=state).set(state == now)
