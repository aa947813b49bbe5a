"""The one double in the tests: a provider with prepared answers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from service.providers.amounts import ISO_4217
from service.providers.base import (
    Charge,
    Outcome,
    OutcomeKind,
    ProviderCharge,
    Refund,
    Stage,
)
from service.providers.later import Feed, Item, Page, ProviderDispute, ProviderRefund, Slice
from service.resilience.deadline import Deadline

SUCCEEDED = Outcome(OutcomeKind.SUCCEEDED, Stage.ANSWERED, provider_ref="pi_1")
PREPARED = Outcome(OutcomeKind.PENDING, Stage.ANSWERED, provider_ref="pi_1")
DECLINED = Outcome(OutcomeKind.DECLINED, Stage.ANSWERED, provider_ref="pi_1")
TIMED_OUT = Outcome(OutcomeKind.UNKNOWN, Stage.SENT_UNKNOWN, error="timeout")
REFUSED = Outcome(OutcomeKind.NOT_EXECUTED, Stage.NOT_SENT, error="refused")
TOO_MANY = Outcome(OutcomeKind.NOT_EXECUTED, Stage.ANSWERED, error="http_429")
BAD_REQUEST = Outcome(OutcomeKind.NOT_EXECUTED, Stage.ANSWERED, error="http_4xx")


@dataclass(frozen=True, slots=True)
class Called:
    """One call that reached the provider."""

    operation: str
    key: str
    time_given_s: float


class FakeProvider:
    """Gives `answers` in turn and then repeats the last one; an exception among them is raised.

    `during_call` runs inside each call, with the operation's name.
    """

    def __init__(
        self,
        *answers: Outcome | Exception,
        name: str = "fake",
        two_phase: bool = True,
        during_call: Callable[[str], object] | None = None,
    ) -> None:
        self.name = name
        self.two_phase = two_phase
        self.amounts = ISO_4217
        self.calls: list[Called] = []
        self.charges: list[ProviderCharge] = []
        self._answers = list(answers) or [SUCCEEDED]
        self._during_call = during_call
        self._lock = threading.Lock()

    def answer_with(self, *answers: Outcome | Exception) -> None:
        """From now on."""
        with self._lock:
            self._answers = list(answers)

    @property
    def operations(self) -> list[str]:
        return [call.operation for call in self.calls]

    @property
    def available(self) -> bool:
        return True

    def prepare(self, charge: Charge, deadline: Deadline) -> Outcome:
        return self._answer("prepare", charge.provider_key, deadline)

    def confirm(self, charge: Charge, deadline: Deadline) -> Outcome:
        return self._answer("confirm", charge.provider_key, deadline)

    def look_up(self, charge: Charge, deadline: Deadline) -> Outcome:
        return self._answer("look_up", charge.provider_key, deadline)

    def capture(self, charge: Charge, amount_minor: int, key: str, deadline: Deadline) -> Outcome:
        return self._answer("capture", key, deadline)

    def cancel(self, charge: Charge, key: str, deadline: Deadline) -> Outcome:
        return self._answer("cancel", key, deadline)

    def look_up_refund(self, refund: Refund, deadline: Deadline) -> Outcome:
        return self._answer("look_up_refund", refund.provider_key, deadline)

    def refund(self, refund: Refund, deadline: Deadline) -> Outcome:
        return self._answer("refund", refund.provider_key, deadline)

    def list_since(self, since: datetime, deadline: Deadline) -> Iterator[ProviderCharge]:
        self._answer("list", "", deadline)
        yield from self.charges

    def page(self, feed: Feed, part: Slice, deadline: Deadline) -> Page:
        self._answer("list", "", deadline)
        return Page(list(self.charges), None, part.page_size)

    def read_again(self, feed: Feed, provider_ref: str, deadline: Deadline) -> Sequence[Item]:
        self._answer("look_up", "", deadline)
        return []

    def refunds_of(self, charge_ref: str, deadline: Deadline) -> list[ProviderRefund]:
        self._answer("list", "", deadline)
        return []

    def disputes_of(self, charge_ref: str, deadline: Deadline) -> list[ProviderDispute]:
        self._answer("list", "", deadline)
        return []

    def identify(self, charge_ref: str, deadline: Deadline) -> ProviderCharge | None:
        self._answer("look_up", "", deadline)
        return None

    def _answer(self, operation: str, key: str, deadline: Deadline) -> Outcome:
        with self._lock:
            self.calls.append(Called(operation, key, deadline.remaining_s()))
            answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if self._during_call is not None:
            self._during_call(operation)
        if isinstance(answer, Exception):
            raise answer
        return answer


class FakeClock:
    """A monotonic clock that moves only by the test's calls."""

    def __init__(self, now_s: float = 1000.0) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        return self.now_s

    def move(self, seconds: float) -> None:
        self.now_s += seconds
