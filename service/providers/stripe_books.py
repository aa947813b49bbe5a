"""Stripe's own books: what became of one of our charges, and which charges there are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Protocol

from service.errors import ProviderUnavailable
from service.providers.base import Charge, Outcome, OutcomeKind, ProviderCharge, Stage
from service.providers.stripe_answers import Garbage, Object
from service.providers.stripe_api import StripeApi
from service.providers.transport import Answer, TransportError
from service.resilience.deadline import Deadline

# Stripe keeps a key for at least 24 h; past this its reuse could be a second charge.
KEY_LIFETIME = timedelta(hours=20)
# Stripe's clock and ours, and the time between our commit and its create.
CLOCKS_DIFFER = timedelta(minutes=10)


class OfAnswer(Protocol):
    """Reads a whole answer about our charge, of any status."""

    def __call__(self, answer: Answer, charge: Charge) -> Outcome: ...


class StripeBooks:
    """The objects below one `path`, read with what its adapter knows of their shape."""

    def __init__(
        self,
        api: StripeApi,
        path: str,
        *,
        of_answer: OfAnswer,
        of_object: Callable[[Object, Charge], Outcome],
        of_listed: Callable[[Object], ProviderCharge | None],
    ) -> None:
        self._api = api
        self._path = path
        self._of_answer = of_answer
        self._of_object = of_object
        # None: an object in the list that another adapter answers for.
        self._of_listed = of_listed

    def look_up(
        self,
        charge: Charge,
        deadline: Deadline,
        *,
        send_again: Callable[[], Answer] | None = None,
    ) -> Outcome:
        """By its reference, its key, or its place in the list.

        `send_again` is the one thing here that could move money: the same key once more, which
        completes the attempt that is in doubt and never begins another.
        """
        if charge.provider_ref is not None:
            return self.retrieve("look_up", charge, deadline)
        if send_again is not None and _key_is_young(charge):
            answer = send_again()
            # Neither a saved 500 nor "invalid" tells whether the first call charged.
            if answer.status < 500 and answer.status not in (400, 404):
                return self._of_answer(answer, charge)
        return self._find(charge, deadline)

    def retrieve(self, operation: str, charge: Charge, deadline: Deadline) -> Outcome:
        """The charge by its reference."""
        answer = self._api.get(operation, f"{self._path}/{charge.provider_ref}", deadline)
        return self._of_answer(answer, charge)

    def _find(self, charge: Charge, deadline: Deadline) -> Outcome:
        """By our metadata in the list, which Stripe keeps up to date (its search is not)."""
        created_at = charge.created_at or datetime.fromtimestamp(0, UTC) + CLOCKS_DIFFER
        best: Outcome | None = None
        for found in self._since("look_up", created_at - CLOCKS_DIFFER, deadline):
            listed = self._of_listed(found)
            if listed is None or listed.payment_id != charge.payment_id:
                continue
            outcome = self._of_object(found, charge)
            if outcome.kind is OutcomeKind.SUCCEEDED:
                return outcome
            if best is None or _doubt(outcome) > _doubt(best):
                best = outcome
        # What is not there now was proven absent; whether it may still come is for the caller.
        return best or Outcome(OutcomeKind.NOT_EXECUTED, Stage.ANSWERED)

    def list_since(self, since: datetime, deadline: Deadline) -> Iterator[ProviderCharge]:
        """All charges made since, newest first; raises ProviderUnavailable where a page fails."""
        try:
            for found in self._since("list", since, deadline):
                listed = self._of_listed(found)
                if listed is not None:
                    yield listed
        except (TransportError, Garbage) as error:
            raise ProviderUnavailable("The provider's books could not be read.") from error

    def _since(self, operation: str, since: datetime, deadline: Deadline) -> Iterator[Object]:
        query = {"created[gte]": str(int(since.timestamp()))}
        return self._api.listed(operation, self._path, query, deadline)


def _key_is_young(charge: Charge) -> bool:
    return charge.created_at is not None and datetime.now(UTC) - charge.created_at < KEY_LIFETIME


def _doubt(outcome: Outcome) -> int:
    """The order in which one of several matches is believed: what could move money comes first."""
    order = (OutcomeKind.NOT_EXECUTED, OutcomeKind.DECLINED, OutcomeKind.PENDING)
    return order.index(outcome.kind) if outcome.kind in order else len(order)
