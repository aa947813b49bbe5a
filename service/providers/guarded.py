"""A provider behind its guards: bulkhead > breaker > retry > deadline > transport."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import lru_cache, partial
from time import monotonic
from typing import TypeVar

from prometheus_client import Counter, Histogram

from service.errors import BulkheadFull, Busy, ProviderUnavailable
from service.observability import tracing
from service.observability.metrics import catalogue as metrics
from service.providers.amounts import AmountTable
from service.providers.base import (
    KEY_USED,
    Charge,
    Outcome,
    OutcomeKind,
    ProviderCharge,
    Refund,
    Stage,
)
from service.providers.later import (
    Answered,
    Feed,
    FeedMissing,
    Item,
    LaterProvider,
    Page,
    ProviderDispute,
    ProviderRefund,
    Slice,
)
from service.resilience.breaker.breaker import Breaker, BreakerOpen
from service.resilience.bulkhead import Bulkhead
from service.resilience.deadline import Deadline
from service.resilience.retry import Again, Retry

log = logging.getLogger(__name__)

Answer = TypeVar("Answer")

# Errors of our own making: they say nothing about the provider.
_OWN_ENDS = frozenset({"deadline", "breaker_open", "bulkhead_full"})
_TIMEOUTS = frozenset({"timeout", "connect_timeout"})
# Answers after which the same call, with the same key, may succeed a little later.
_LATER = frozenset({"http_409", "http_429"})
# `not_executed` as the provider's statement about the charge, not about one call.
_DEFINITE = frozenset({None, "canceled"})
# An immediate retry meets the same certificate, or has no time either.
# An answer about another call is a doubt about money, even for a prepare: never retry it.
_HOPELESS = frozenset({"tls", "mismatch", KEY_USED, *_OWN_ENDS})
# A timeout counts against the provider when it had at least this share of a probe's time.
_FAIR_SHARE = 0.9
# The shortest Retry-After for clients.
_RETRY_AFTER_MIN_S = 1.0


class GuardedProvider:
    """A Provider that refuses at once calls that cannot succeed. Any number of threads may use it.

    Two rules about money. A refused call is `not_executed` and `not_sent`: a statement about this
    call only; a refused look-up is `unknown`, because it proves nothing. While the breaker is not
    closed, no call that could move money is sent: only `probe`, look-ups, and `prepare` in
    two_phase may be the one probe. One success closes the breaker, so the `confirm` after a
    `prepare` that probed is sent.
    """

    def __init__(
        self,
        provider: LaterProvider,
        *,
        bulkhead: Bulkhead,
        breaker: Breaker,
        retry: Retry,
        timeout_s: float,
        probe_timeout_s: float = 1.0,
    ) -> None:
        self.name = provider.name
        self.two_phase = provider.two_phase
        self._provider = provider
        self._bulkhead = bulkhead
        self._breaker = breaker
        self._retry = retry
        self._timeout_s = timeout_s
        self._probe_timeout_s = probe_timeout_s

    @property
    def amounts(self) -> AmountTable:
        """The provider's own table; no guard is needed."""
        return self._provider.amounts

    @property
    def available(self) -> bool:
        """False while the breaker is not closed: callers then queue a payment instead of sending it."""
        return self._breaker.closed

    def prepare(self, charge: Charge, deadline: Deadline) -> Outcome:
        """Make the charge known; moves no money, so it may probe and be repeated in doubt."""
        send = partial(self._provider.prepare, charge)
        if self.two_phase:
            return self._guarded("prepare", send, deadline, may_probe=True, again_in_doubt=True)
        # In one_shot prepare sends nothing, so it is no probe; a payment refused here is still unsent.
        return send(deadline) if self.available else self._refused("prepare", "breaker_open")

    def confirm(self, charge: Charge, deadline: Deadline) -> Outcome:
        """Move the money; repeated only after a try that certainly did not, or at the provider's request."""
        return self._guarded("confirm", partial(self._provider.confirm, charge), deadline)

    def look_up(self, charge: Charge, deadline: Deadline) -> Outcome:
        """Find the state of the charge; in two_phase it may be the breaker's probe."""
        # In one_shot it may send the same key again, which can complete a charge.
        send = partial(self._provider.look_up, charge)
        return self._guarded("look_up", send, deadline, may_probe=self.two_phase)

    def capture(self, charge: Charge, amount_minor: int, key: str, deadline: Deadline) -> Outcome:
        """Take reserved money; repeated as `confirm` is."""
        send = partial(self._provider.capture, charge, amount_minor, key)
        return self._guarded("capture", send, deadline)

    def cancel(self, charge: Charge, key: str, deadline: Deadline) -> Outcome:
        """Release reserved money; repeated as `confirm` is."""
        return self._guarded("cancel", partial(self._provider.cancel, charge, key), deadline)

    def refund(self, refund: Refund, deadline: Deadline) -> Outcome:
        """Give money back; repeated as `confirm` is."""
        return self._guarded("refund", partial(self._provider.refund, refund), deadline)

    def look_up_refund(self, refund: Refund, deadline: Deadline) -> Outcome:
        """Find the state of a refund; may probe, because it only reads the books."""
        send = partial(self._provider.look_up_refund, refund)
        return self._guarded("look_up", send, deadline, may_probe=True)

    def _guarded(
        self,
        operation: str,
        send: Callable[[Deadline], Outcome],
        deadline: Deadline,
        *,
        may_probe: bool = False,
        again_in_doubt: bool = False,
    ) -> Outcome:
        """Send one call through all guards, in their order."""
        try:
            with (
                self._bulkhead.enter() as place,
                self._breaker.admit(may_probe=may_probe) as permit,
            ):
                limit_s = self._probe_timeout_s if permit.is_probe else self._timeout_s
                within = deadline.within(limit_s)
                is_fair = self._is_fair(within)

                def again(last: Outcome) -> Again | None:
                    # A probe is one call; and after a transition of the breaker no call is repeated.
                    if permit.is_probe or not permit.is_current:
                        return None
                    return _again(last, in_doubt=again_in_doubt)

                tries = _Tries(self.name, operation, partial(send, within))
                last = self._retry.run(tries.once, within, again)
                failed = _failed(last, is_fair=is_fair)
                permit.record(failed=failed)
                # A full bulkhead says nothing about the provider.
                place.failed = True if last.error == "http_429" else failed
        except BulkheadFull:
            return self._refused(operation, "bulkhead_full")
        except BreakerOpen:
            return self._refused(operation, "breaker_open")
        return replace(tries.sum_up(last), breaker=permit.state)

    def _is_fair(self, deadline: Deadline) -> bool:
        """Whether the call has enough time to judge the provider by its result."""
        return deadline.remaining_s() >= _FAIR_SHARE * self._probe_timeout_s

    def _refused(self, operation: str, word: str) -> Outcome:
        _count(self.name, operation, "refused")
        # `not_executed` from a look-up would be taken as proof of absence.
        is_look_up = operation == "look_up"
        return Outcome(
            kind=OutcomeKind.UNKNOWN if is_look_up else OutcomeKind.NOT_EXECUTED,
            stage=Stage.NOT_SENT,
            error=word,
            retry_after_s=max(_RETRY_AFTER_MIN_S, self._breaker.open_remaining),
            breaker=self._breaker.state,
        )

    # --- Signs of life, and listings: many calls behind one iterator -----------------------------

    def probe(self, deadline: Deadline) -> bool:
        """Send the probe if the breaker is due for one; True: the breaker is closed.

        It moves no money and costs almost nothing while no probe is due, so call it several times a
        second: a service without look-ups would never learn that the provider is back.
        """
        if self._breaker.probe_is_due:
            within = deadline.within(self._probe_timeout_s)
            charges = self._provider.list_since(datetime.now(UTC), within)
            with contextlib.suppress(Busy):
                self._step(charges, within, is_first=True, may_probe=True)
        return self.available

    def list_since(self, since: datetime, deadline: Deadline) -> Iterator[ProviderCharge]:
        """All charges made since; raises Busy where a page cannot be read.

        The first step counts as a call. Later steps count only when they fail, because most of them
        read a page in memory; the iteration ends where the breaker opens.
        """
        charges = self._provider.list_since(since, deadline)
        charge = self._step(charges, deadline, is_first=True)
        while charge is not None:
            yield charge
            charge = self._step(charges, deadline, is_first=False)

    # --- Records about existing charges: these reads move no money -------------------------------

    def page(self, feed: Feed, part: Slice, deadline: Deadline) -> Page:
        """One page of a list; raises Busy where it cannot be read, FeedMissing."""
        return self._read("list", partial(self._provider.page, feed, part), deadline)

    def read_again(self, feed: Feed, provider_ref: str, deadline: Deadline) -> Sequence[Item]:
        """One object of a list by itself; raises Busy."""
        send = partial(self._provider.read_again, feed, provider_ref)
        return self._read("look_up", send, deadline)

    def refunds_of(self, charge_ref: str, deadline: Deadline) -> list[ProviderRefund]:
        """All refunds of a charge; raises Busy."""
        return self._read("list", partial(self._provider.refunds_of, charge_ref), deadline)

    def disputes_of(self, charge_ref: str, deadline: Deadline) -> list[ProviderDispute]:
        """All disputes about a charge; raises Busy."""
        return self._read("list", partial(self._provider.disputes_of, charge_ref), deadline)

    def identify(self, charge_ref: str, deadline: Deadline) -> ProviderCharge | None:
        """The charge with that reference; raises Busy."""
        return self._read("look_up", partial(self._provider.identify, charge_ref), deadline)

    def _read(
        self, operation: str, send: Callable[[Deadline], Answer], deadline: Deadline
    ) -> Answer:
        """One read behind bulkhead and breaker, within one call's time; raises Busy."""
        within = deadline.within(self._timeout_s)
        is_fair = self._is_fair(within)
        result = "unknown"
        try:
            with self._bulkhead.enter(), self._breaker.admit() as permit:
                try:
                    answer = send(within)
                except FeedMissing:
                    result = "not_executed"
                    permit.record(failed=False)
                    raise
                except Answered:
                    # A whole answer is a sign of life: payments do not wait for a list's sake.
                    permit.record(failed=None)
                    raise
                except Exception:
                    permit.record(failed=True if is_fair else None)
                    raise
                result = "succeeded"
                permit.record(failed=False)
                return answer
        except BulkheadFull:
            result = "refused"
            raise
        except BreakerOpen:
            result = "refused"
            raise ProviderUnavailable(
                "The provider is known to be down.",
                retry_after_s=max(_RETRY_AFTER_MIN_S, self._breaker.open_remaining),
            ) from None
        finally:
            _count(self.name, operation, result)

    def _step(
        self,
        charges: Iterator[ProviderCharge],
        deadline: Deadline,
        *,
        is_first: bool,
        may_probe: bool = False,
    ) -> ProviderCharge | None:
        is_fair = self._is_fair(deadline)
        result = "not_executed"
        try:
            with self._bulkhead.enter(), self._breaker.admit(may_probe=may_probe) as permit:
                try:
                    charge = next(charges, None)
                except Exception:
                    permit.record(failed=True if is_fair else None)
                    raise
                result = "succeeded"
                permit.record(failed=False if is_first else None)
                return charge
        except BulkheadFull:
            result = "refused"
            raise
        except BreakerOpen:
            result = "refused"
            raise ProviderUnavailable(
                "The provider is known to be down.",
                retry_after_s=max(_RETRY_AFTER_MIN_S, self._breaker.open_remaining),
            ) from None
        except Busy:
            raise
        except Exception as error:
            log.exception("provider.adapter_failed", extra={"operation": "list"})
            raise ProviderUnavailable("The provider's books cannot be read.") from error
        finally:
            if is_first or result != "succeeded":
                _count(self.name, "list", result)


class _Tries:
    """The tries of one call. A later try that was not executed does not remove an earlier doubt."""

    def __init__(self, name: str, operation: str, send: Callable[[], Outcome]) -> None:
        self._name = name
        self._operation = operation
        self._send = send
        self._doubt: Outcome | None = None

    def once(self) -> Outcome:
        began_s = monotonic()
        try:
            outcome = self._send()
        except Exception as error:
            # A bug of the adapter after the money may have moved: log an error and answer with doubt.
            log.exception("provider.adapter_failed", extra={"operation": self._operation})
            outcome = Outcome(
                OutcomeKind.UNKNOWN,
                Stage.SENT_UNKNOWN,
                error="internal",
                error_detail=type(error).__name__,
                ms=round((monotonic() - began_s) * 1000),
            )
        if outcome.kind is OutcomeKind.UNKNOWN:
            self._doubt = outcome
        _count(self._name, self._operation, outcome.kind, outcome.error)
        took_s = monotonic() - began_s
        _durations(self._name, self._operation).observe(took_s, tracing.exemplar())
        return outcome

    def sum_up(self, last: Outcome) -> Outcome:
        """The combined result of all tries."""
        is_definite = last.stage is Stage.ANSWERED and last.error in _DEFINITE
        if self._doubt is None or is_definite or last.kind is not OutcomeKind.NOT_EXECUTED:
            return last
        return self._doubt


def _again(last: Outcome, *, in_doubt: bool) -> Again | None:
    if last.error in _LATER:
        return Again(last.error, last.retry_after_s)
    if last.error in _HOPELESS:
        return None
    if last.kind is OutcomeKind.NOT_EXECUTED and last.stage is Stage.NOT_SENT:
        return Again("not_executed", last.retry_after_s)
    if in_doubt and last.kind is OutcomeKind.UNKNOWN:
        return Again("unknown", last.retry_after_s)
    return None


def _failed(last: Outcome, *, is_fair: bool) -> bool | None:
    """The call's evidence about the provider's health; None: it has none."""
    if last.kind is OutcomeKind.DECLINED and last.stage is Stage.NOT_SENT:
        # The provider cannot express the request: our own error.
        return None
    if last.error in _OWN_ENDS or (last.error in _TIMEOUTS and not is_fair):
        return None
    # A whole answer proves that the provider is up, even when it refuses our call.
    return last.stage is not Stage.ANSWERED or last.error == "http_5xx"


def _count(name: str, operation: str, result: str, error: str | None = None) -> None:
    _calls(name, operation, result).inc()
    if error in metrics.TIMEOUT_KINDS:
        metrics.provider_timeouts_total.labels(name, operation, error).inc()
    elif error in metrics.CONNECTION_ERROR_KINDS:
        metrics.provider_connection_errors_total.labels(name, error).inc()


# A look-up of a labelled child costs more than an increment: cache each one.
@lru_cache(maxsize=256)
def _calls(name: str, operation: str, result: str) -> Counter:
    return metrics.provider_calls_total.labels(name, operation, result)


@lru_cache(maxsize=64)
def _durations(name: str, operation: str) -> Histogram:
    return metrics.provider_call_duration_seconds.labels(name, operation)
