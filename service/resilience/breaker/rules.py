"""The breaker's rules: the conditions and durations of its open state."""

from __future__ import annotations

from dataclasses import dataclass

from service.resilience.breaker.window import Tally


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerRules:
    """The conditions and durations of the open state, and the lease of a probe."""

    # At most twice the bulkhead's limit: with a larger window earlier successes would outvote a
    # worker full of hung calls.
    window_calls: float = 20
    window_s: float = 10.0
    # Fewer calls prove nothing.
    minimum_calls: int = 10
    failure_rate: float = 0.5
    # A call this slow counts as slow even when it succeeds.
    slow_s: float = 3.0
    slow_rate: float = 0.8
    # Enough calls where every one of them failed slowly: a bulkhead at its floor lets no more than
    # these end within the window, however long the provider hangs.
    hung_calls: int = 4
    # The pause between two probes. A probe is one cheap look-up for each host, so it may be frequent:
    # the first payment goes through within 2 s of the provider's return.
    open_s: float = 0.75
    # A relapse costs real payments a timeout, so each one doubles the pause, up to this limit, which
    # allows recovery within 5 s.
    open_max_s: float = 4.0
    # A prober without a report after this time is dead or stuck, and the next one may probe.
    probe_lease_s: float = 1.5

    def reason_to_open(self, tally: Tally) -> str | None:
        """The reason why these calls open the breaker, in one word; None: they do not."""
        if self.hung_calls <= tally.calls == tally.failures == tally.slow:
            return "slow_rate"
        if tally.calls < self.minimum_calls:
            return None
        if tally.failures >= self.failure_rate * tally.calls:
            return "failure_rate"
        if tally.slow >= self.slow_rate * tally.calls:
            return "slow_rate"
        return None


# For the drill that must fail: the window never holds this many calls.
NEVER_OPENS = BreakerRules(minimum_calls=1_000_000, hung_calls=1_000_000)
