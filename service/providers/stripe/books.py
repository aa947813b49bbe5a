"""Stripe's own books: the state of one of our charges, and the list of charges."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Protocol

from service.errors import ProviderUnavailable
from service.providers.base import (
    KEY_LIFETIME,
    KEY_USED,
    Charge,
    Outcome,
    OutcomeKind,
    ProviderCharge,
    Stage,
)
from service.providers.http.transport import ProviderAnswer, TransportError
from service.providers.stripe import answers
from service.providers.stripe.answers import Garbage, Object
from service.providers.stripe.api import StripeApi
from service.providers.stripe.form import Unsendable
from service.resilience.deadline import Deadline

# A provider that knows a key received it within this time (Stripe: at least 24 h).
KEYS_REMEMBERED = timedelta(hours=48)
# The difference between Stripe's clock and ours, and the time between our commit and its create.
CLOCKS_DIFFER = timedelta(minutes=10)
_MAY_HAVE_MOVED = frozenset({OutcomeKind.SUCCEEDED, OutcomeKind.PENDING})


class OfAnswer(Protocol):
    """Reads a whole answer of any status about our charge."""

    def __call__(self, answer: ProviderAnswer, charge: Charge) -> Outcome: ...


class StripeBooks:
    """The objects below one `path`, read with the functions of their adapter."""

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
        # None: the object belongs to another adapter.
        self._of_listed = of_listed

    def look_up(
        self,
        charge: Charge,
        deadline: Deadline,
        *,
        send_again: Callable[[], ProviderAnswer] | None = None,
    ) -> Outcome:
        """Find a charge by its reference, in the list, or by its key.

        Only `send_again` could move money here: it sends the same key once more, which completes
        the attempt in doubt and never starts another. It is used only where the charge allows it
        (its caller has just recorded it as sent) and the books lack the charge: a provider that
        ignores keys would charge twice.
        """
        if charge.provider_ref is not None:
            return self.retrieve("look_up", charge, deadline)
        found = self._find(charge, deadline)
        may_send_again = charge.may_send_again and _key_is_young(charge)
        if found is not None or send_again is None or not may_send_again:
            return found or Outcome(OutcomeKind.NOT_EXECUTED, Stage.ANSWERED)
        try:
            outcome = self._of_answer(send_again(), charge)
        except Unsendable:
            # Made by an older version: no process can send it any more, and the books lack it.
            return Outcome(OutcomeKind.NOT_EXECUTED, Stage.ANSWERED)
        if outcome.error == KEY_USED:
            # Made by an earlier call with the same client key; we lost its row.
            return self._find(replace(charge, is_older=True), deadline) or outcome
        if outcome.error == "http_5xx" and outcome.is_replay:
            # A saved answer: the key cannot execute anything more, and the books lack a charge.
            return Outcome(OutcomeKind.NOT_EXECUTED, Stage.ANSWERED, is_replay=True)
        return outcome

    def of_refused_capture(
        self, answer: ProviderAnswer, charge: Charge, deadline: Deadline
    ) -> Outcome:
        """The outcome of an answer other than 200 to a capture.

        "This request is invalid" is a definite refusal only while the books still show all of the
        money as reserved; else the books contain the outcome.
        """
        refused = answers.of_error(answer, provider_ref=charge.provider_ref, is_first=True)
        if refused.decline is None or not refused.decline.is_request:
            return self._of_answer(answer, charge)
        now = self.retrieve("capture", charge, deadline)
        is_reserved = now.kind is OutcomeKind.SUCCEEDED and now.amount_capturable > 0
        return refused if is_reserved else now

    def retrieve(self, operation: str, charge: Charge, deadline: Deadline) -> Outcome:
        """Find the charge by its reference."""
        answer = self._api.get(operation, f"{self._path}/{charge.provider_ref}", deadline)
        return self._of_answer(answer, charge)

    def _find(self, charge: Charge, deadline: Deadline) -> Outcome | None:
        """Find the charge by our metadata in the list, which Stripe keeps current (unlike its search).

        None: the list lacks it now. The caller decides whether the charge may still arrive.
        """
        created_at = charge.created_at or datetime.fromtimestamp(0, UTC) + KEYS_REMEMBERED
        since = created_at - (KEYS_REMEMBERED if charge.is_older else CLOCKS_DIFFER)
        best: Outcome | None = None
        best_of_key: Outcome | None = None
        for found in self._since("look_up", since, deadline):
            listed = self._read_for(found, charge)
            if listed is None:
                continue
            outcome = self._of_object(found, charge)
            if listed.payment_id == charge.payment_id:
                if outcome.kind is OutcomeKind.SUCCEEDED:
                    return outcome
                best = _more_doubtful(best, outcome)
            else:
                best_of_key = _more_doubtful(best_of_key, outcome)
        if best is None:
            return best_of_key
        # A charge that moved under another id of ours belongs to a lost row; one that did not move
        # belongs to an earlier payment that has ended.
        if best_of_key is not None and best_of_key.kind in _MAY_HAVE_MOVED:
            return best_of_key
        return best

    def _read_for(self, found: Object, charge: Charge) -> ProviderCharge | None:
        """The charge where it is this one; raises Garbage where an unreadable object may be it."""
        try:
            listed = self._of_listed(found)
        except Garbage:
            if answers.is_of(found, charge) or not isinstance(found.get("metadata"), dict):
                raise
            return None
        return listed if listed is not None and answers.is_of(found, charge) else None

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


def _more_doubtful(one: Outcome | None, other: Outcome) -> Outcome:
    """The order of two matches: a charge that moved money, or could, comes first."""
    return other if one is None or _doubt(other) > _doubt(one) else one


def _doubt(outcome: Outcome) -> int:
    order = (
        *(OutcomeKind.NOT_EXECUTED, OutcomeKind.DECLINED, OutcomeKind.PENDING),
        *(OutcomeKind.UNKNOWN, OutcomeKind.SUCCEEDED),
    )
    return order.index(outcome.kind)
