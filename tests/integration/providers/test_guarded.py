"""The guards around a provider: what is let through, for how long, how often, and what is said."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from itertools import islice
from time import monotonic, sleep

import pytest

from service.errors import BulkheadFull, Busy, ProviderUnavailable
from service.observability.metrics import catalogue as metrics
from service.providers.base import (
    Charge,
    Outcome,
    OutcomeKind,
    ProviderCharge,
    Refund,
    Stage,
)
from service.providers.guarded import GuardedProvider
from service.resilience.breaker.breaker import Breaker
from service.resilience.bulkhead import Bulkhead
from service.resilience.deadline import Deadline
from service.resilience.retry import Retry, RetryBudget
from tests.support.providers.fakes import (
    BAD_REQUEST,
    DECLINED,
    PREPARED,
    REFUSED,
    SUCCEEDED,
    TIMED_OUT,
    TOO_MANY,
    FakeClock,
    FakeProvider,
)

CHARGE = Charge(
    payment_id="pay_1",
    merchant_id="m_1",
    amount_minor=2599,
    currency="usd",
    payment_method="pm_card_visa",
    provider_key="hf-1-1",
    provider_ref="pi_1",
)
REFUND = Refund(
    refund_id="re_1",
    payment_id="pay_1",
    provider_ref="pi_1",
    amount_minor=1,
    currency="usd",
    provider_key="hf-re-1",
)
IN_USE = Outcome(OutcomeKind.UNKNOWN, Stage.ANSWERED, error="http_409")


class Guards:
    """A provider behind guards, with a breaker on the test's clock."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.breaker = Breaker("fake", clock=self.clock)
        self.bulkhead = Bulkhead(limit_max=8)
        self.budget = RetryBudget(tokens_max=1000, share=10)

    def around(self, provider: FakeProvider) -> GuardedProvider:
        return GuardedProvider(
            provider,
            bulkhead=self.bulkhead,
            breaker=self.breaker,
            retry=Retry("fake", budget=self.budget),
            timeout_s=5.0,
            probe_timeout_s=1.0,
        )

    def open(self) -> None:
        while self.breaker.closed:
            self.breaker.admit().record(failed=True)

    def let_the_pause_pass(self) -> None:
        self.clock.move(2)


@pytest.fixture
def guards() -> Iterator[Guards]:
    guards = Guards()
    yield guards
    guards.breaker.close()


def deadline() -> Deadline:
    return Deadline.after(60)


# --- Deadlines


def test_call_gets_the_smaller_of_both_budgets(guards: Guards):
    provider = FakeProvider()
    guarded = guards.around(provider)

    guarded.confirm(CHARGE, Deadline.after(60))
    guarded.confirm(CHARGE, Deadline.after(4))

    assert 4 < provider.calls[0].time_given_s <= 5
    assert 0 < provider.calls[1].time_given_s <= 4


def test_a_probe_gets_a_second(guards: Guards):
    provider = FakeProvider()
    guards.open()
    guards.let_the_pause_pass()

    guards.around(provider).look_up(CHARGE, Deadline.after(60))

    assert 0 < provider.calls[0].time_given_s <= 1


# --- The breaker


def test_lost_calls_open_the_breaker_and_the_next_is_not_sent(guards: Guards):
    provider = FakeProvider(TIMED_OUT)
    guarded = guards.around(provider)

    outcomes = [guarded.confirm(CHARGE, deadline()) for _ in range(12)]

    assert len(provider.calls) == 10
    assert not guarded.available
    assert outcomes[9].breaker == "closed"
    refused = outcomes[10]
    assert (refused.kind, refused.stage) == (OutcomeKind.NOT_EXECUTED, Stage.NOT_SENT)
    assert (refused.error, refused.breaker) == ("breaker_open", "open")


@pytest.mark.parametrize("answer", [DECLINED, BAD_REQUEST, PREPARED])
def test_the_providers_own_answers_never_open_it(guards: Guards, answer: Outcome):
    guarded = guards.around(FakeProvider(answer))

    for _ in range(50):
        guarded.confirm(CHARGE, deadline())

    assert guarded.available


def test_callers_without_time_do_not_open_it_for_the_others(guards: Guards):
    guarded = guards.around(FakeProvider(TIMED_OUT))

    for _ in range(50):
        guarded.confirm(CHARGE, Deadline.after(0.05))

    assert guarded.available


@pytest.mark.parametrize("word", ["timeout", "reset", "http_5xx", "garbage", "truncated", "tls"])
def test_each_way_of_not_answering_counts(guards: Guards, word: str):
    lost = Outcome(OutcomeKind.UNKNOWN, Stage.SENT_UNKNOWN, error=word)
    guarded = guards.around(FakeProvider(lost))

    for _ in range(10):
        guarded.confirm(CHARGE, deadline())

    assert not guarded.available


def test_nothing_that_moves_money_ever_probes(guards: Guards):
    provider = FakeProvider()
    guarded = guards.around(provider)
    guards.open()
    guards.let_the_pause_pass()

    outcomes = [
        guarded.confirm(CHARGE, deadline()),
        guarded.capture(CHARGE, 100, "hf-1-capture", deadline()),
        guarded.cancel(CHARGE, "hf-1-cancel", deadline()),
        guarded.refund(REFUND, deadline()),
    ]

    assert provider.calls == []
    assert {outcome.error for outcome in outcomes} == {"breaker_open"}
    assert not guarded.available


def test_a_look_up_probes_and_its_success_lets_payments_through(guards: Guards):
    provider = FakeProvider()
    guarded = guards.around(provider)
    guards.open()
    guards.let_the_pause_pass()

    assert guarded.look_up(CHARGE, deadline()).breaker == "half_open"

    assert guarded.available
    assert guarded.confirm(CHARGE, deadline()).kind is OutcomeKind.SUCCEEDED


def test_a_declined_payments_look_up_is_a_sign_of_life(guards: Guards):
    guarded = guards.around(FakeProvider(DECLINED))
    guards.open()
    guards.let_the_pause_pass()

    guarded.look_up(CHARGE, deadline())

    assert guarded.available


def test_a_refused_look_up_proves_nothing(guards: Guards):
    guarded = guards.around(FakeProvider())
    guards.open()

    outcomes = [guarded.look_up(CHARGE, deadline()), guarded.look_up_refund(REFUND, deadline())]

    assert [outcome.kind for outcome in outcomes] == [OutcomeKind.UNKNOWN] * 2
    assert [outcome.error for outcome in outcomes] == ["breaker_open"] * 2


def test_the_confirm_after_a_prepare_that_probed_goes_out(guards: Guards):
    provider = FakeProvider(PREPARED, SUCCEEDED)
    guarded = guards.around(provider)
    guards.open()
    guards.let_the_pause_pass()

    guarded.prepare(CHARGE, deadline())
    outcome = guarded.confirm(CHARGE, deadline())

    assert provider.operations == ["prepare", "confirm"]
    assert outcome.kind is OutcomeKind.SUCCEEDED


def test_one_shot_prepare_does_not_count_for_the_breaker(guards: Guards):
    provider = FakeProvider(PREPARED, two_phase=False)
    guarded = guards.around(provider)
    guards.open()
    guards.let_the_pause_pass()

    outcome = guarded.prepare(CHARGE, deadline())

    assert provider.calls == []
    assert outcome.error == "breaker_open"
    assert not guarded.available


def test_one_shot_look_up_may_charge_and_does_not_probe(guards: Guards):
    provider = FakeProvider(two_phase=False)
    guarded = guards.around(provider)
    guards.open()
    guards.let_the_pause_pass()

    assert guarded.look_up(CHARGE, deadline()).kind is OutcomeKind.UNKNOWN
    assert provider.calls == []

    assert guarded.probe(deadline())
    assert guarded.look_up(CHARGE, deadline()).kind is OutcomeKind.SUCCEEDED


def test_a_probe_that_fails_is_not_repeated(guards: Guards):
    provider = FakeProvider(REFUSED)
    guarded = guards.around(provider)
    guards.open()
    guards.let_the_pause_pass()

    guarded.prepare(CHARGE, deadline())

    assert len(provider.calls) == 1
    assert guards.breaker.state == "open"


def test_probe_calls_once_a_pause_and_never_when_closed(guards: Guards):
    provider = FakeProvider(ProviderUnavailable("still down"))
    guarded = guards.around(provider)
    assert guarded.probe(deadline())
    guards.open()
    assert not guarded.probe(deadline())
    assert provider.calls == []

    guards.let_the_pause_pass()
    asked = [guarded.probe(deadline()) for _ in range(20)]

    assert not any(asked)
    assert provider.operations == ["list"]
    provider.answer_with(SUCCEEDED)
    guards.let_the_pause_pass()
    assert guarded.probe(deadline())


# --- The bulkhead


def test_a_hung_provider_holds_no_more_threads_than_its_share(guards: Guards):
    hang, inside = threading.Event(), threading.Semaphore(0)

    def during_call(operation: str) -> None:
        inside.release()
        hang.wait()

    guarded = guards.around(FakeProvider(TIMED_OUT, during_call=during_call))
    threads = [
        threading.Thread(target=guarded.confirm, args=(CHARGE, deadline())) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for _ in threads:
        assert inside.acquire(timeout=60)

    began_s = monotonic()
    outcome = guarded.confirm(CHARGE, deadline())
    took_s = monotonic() - began_s
    hang.set()
    for thread in threads:
        thread.join()

    assert (outcome.kind, outcome.stage) == (OutcomeKind.NOT_EXECUTED, Stage.NOT_SENT)
    assert outcome.error == "bulkhead_full"
    # Not after the minute that it was given.
    assert took_s < 30
    assert guards.bulkhead.in_use == 0
    assert guards.bulkhead.limit == 4


def test_429_lowers_the_limit_and_not_the_breaker(guards: Guards):
    guarded = guards.around(FakeProvider(TOO_MANY))

    for _ in range(15):
        guarded.confirm(CHARGE, Deadline.after(0.4))

    assert guards.bulkhead.limit < 8
    assert guarded.available


# --- Retries


def test_what_certainly_was_not_sent_is_tried_again(guards: Guards):
    provider = FakeProvider(REFUSED, SUCCEEDED)

    outcome = guards.around(provider).confirm(CHARGE, deadline())

    assert outcome.kind is OutcomeKind.SUCCEEDED
    assert [call.key for call in provider.calls] == ["hf-1-1", "hf-1-1"]


@pytest.mark.parametrize("operation", ["confirm", "refund"])
def test_doubt_about_money_is_never_tried_again(guards: Guards, operation: str):
    provider = FakeProvider(TIMED_OUT, SUCCEEDED)
    guarded = guards.around(provider)

    call: dict[str, Callable[[], Outcome]] = {
        "confirm": lambda: guarded.confirm(CHARGE, deadline()),
        "refund": lambda: guarded.refund(REFUND, deadline()),
    }
    outcome = call[operation]()

    assert outcome.kind is OutcomeKind.UNKNOWN
    assert len(provider.calls) == 1


def test_a_prepare_in_doubt_is_tried_again_with_the_same_key(guards: Guards):
    provider = FakeProvider(TIMED_OUT, PREPARED)

    outcome = guards.around(provider).prepare(CHARGE, deadline())

    assert outcome.kind is OutcomeKind.PENDING
    assert [call.key for call in provider.calls] == ["hf-1-1", "hf-1-1"]


def test_a_bad_certificate_is_not_tried_again(guards: Guards):
    provider = FakeProvider(Outcome(OutcomeKind.NOT_EXECUTED, Stage.NOT_SENT, error="tls"))

    guards.around(provider).confirm(CHARGE, deadline())

    assert len(provider.calls) == 1


def test_unsent_retry_does_not_undo_an_earlier_doubt(guards: Guards):
    # The provider is still working on an earlier call with this key; then the link goes down.
    provider = FakeProvider(IN_USE, REFUSED)

    outcome = guards.around(provider).confirm(CHARGE, deadline())

    assert outcome.kind is OutcomeKind.UNKNOWN
    assert outcome.error == "http_409"
    assert len(provider.calls) == 3


def test_the_providers_own_word_undoes_a_doubt(guards: Guards):
    canceled = Outcome(OutcomeKind.NOT_EXECUTED, Stage.ANSWERED, error="canceled")
    provider = FakeProvider(IN_USE, canceled)

    outcome = guards.around(provider).cancel(CHARGE, "hf-1-cancel", deadline())

    assert outcome == replace(canceled, breaker="closed")


def test_nobody_tries_again_once_the_breaker_has_opened(guards: Guards):
    provider = FakeProvider(REFUSED, during_call=lambda operation: guards.open())

    guards.around(provider).confirm(CHARGE, deadline())

    assert len(provider.calls) == 1


def test_retries_are_counted_by_reason(guards: Guards):
    retries = metrics.provider_retries_total.labels(provider="fake", reason="http_429")
    before = retries._value.get()

    guards.around(FakeProvider(TOO_MANY, SUCCEEDED)).confirm(CHARGE, deadline())

    assert retries._value.get() == before + 1


# --- Bugs, and listings


def test_a_bug_in_the_adapter_is_a_doubt_and_is_loud(
    guards: Guards, caplog: pytest.LogCaptureFixture
):
    guarded = guards.around(FakeProvider(KeyError("status")))

    outcomes = [guarded.confirm(CHARGE, deadline()) for _ in range(10)]

    assert {(outcome.kind, outcome.error) for outcome in outcomes} == {
        (OutcomeKind.UNKNOWN, "internal")
    }
    assert "provider.adapter_failed" in caplog.messages
    assert not guarded.available


def test_a_listing_holds_no_place_between_its_steps(guards: Guards):
    provider = FakeProvider()
    provider.charges = [_listed(number) for number in range(5)]

    seen = [guards.bulkhead.in_use for _ in guards.around(provider).list_since(_now(), deadline())]

    assert seen == [0] * 5


def test_a_listing_ends_loudly_where_the_breaker_opens(guards: Guards):
    provider = FakeProvider()
    provider.charges = [_listed(number) for number in range(5)]
    listing = guards.around(provider).list_since(_now(), deadline())
    assert len(list(islice(listing, 2))) == 2

    guards.open()

    with pytest.raises(Busy):
        next(listing)


@pytest.mark.parametrize("error", [ProviderUnavailable("no answer"), KeyError("data")])
def test_a_page_that_cannot_be_had_is_busy_and_counts(guards: Guards, error: Exception):
    guarded = guards.around(FakeProvider(error))

    for _ in range(10):
        with pytest.raises(ProviderUnavailable):
            next(guarded.list_since(_now(), deadline()))

    assert not guarded.available


def test_a_listing_that_finds_the_bulkhead_full_says_so(guards: Guards):
    guarded = guards.around(FakeProvider())
    places = [guards.bulkhead.enter() for _ in range(8)]

    with pytest.raises(BulkheadFull):
        next(guarded.list_since(_now(), deadline()))

    for place in places:
        place.__exit__()


def test_calls_timeouts_and_refusals_are_counted(guards: Guards):
    guarded = guards.around(FakeProvider(TIMED_OUT))
    calls = {
        result: metrics.provider_calls_total.labels(
            provider="fake", operation="confirm", result=result
        )
        for result in ("unknown", "refused")
    }
    timeouts = metrics.provider_timeouts_total.labels(
        provider="fake", operation="confirm", kind="timeout"
    )
    before = [calls["unknown"]._value.get(), calls["refused"]._value.get(), timeouts._value.get()]

    for _ in range(12):
        guarded.confirm(CHARGE, deadline())

    after = [calls["unknown"]._value.get(), calls["refused"]._value.get(), timeouts._value.get()]
    assert [new - old for new, old in zip(after, before, strict=True)] == [10, 2, 10]


# --- The whole, on a real clock


def test_first_payment_after_an_outage_succeeds_in_seconds():
    breaker = Breaker("fake")
    provider = FakeProvider(TIMED_OUT)
    guarded = GuardedProvider(
        provider,
        bulkhead=Bulkhead(limit_max=8),
        breaker=breaker,
        retry=Retry("fake"),
        timeout_s=5.0,
    )
    for _ in range(10):
        guarded.confirm(CHARGE, deadline())
    assert not guarded.available
    calls_of_the_outage = len(provider.calls)

    provider.answer_with(SUCCEEDED)
    back_s = monotonic()
    while not guarded.probe(deadline()):
        assert monotonic() - back_s < 60
        sleep(0.02)
    outcome = guarded.confirm(CHARGE, deadline())

    assert outcome.kind is OutcomeKind.SUCCEEDED
    # Two, on an idle machine: the bench of an outage checks that.
    assert monotonic() - back_s < 60
    assert len(provider.calls) == calls_of_the_outage + 2
    breaker.close()


def _now() -> datetime:
    return datetime.now(UTC)


def _listed(number: int) -> ProviderCharge:
    return ProviderCharge(f"pi_{number}", None, 100, "usd", SUCCEEDED, _now())
