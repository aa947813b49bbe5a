"""Stripe's records about existing charges: pages of lists, refunds, disputes, events."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any, Literal
from urllib.parse import urlencode

from service.errors import ProviderUnavailable
from service.providers.base import OutcomeKind, ProviderCharge, ProviderDecline
from service.providers.http.transport import ProviderAnswer, SentUnknown, TransportError
from service.providers.later import (
    Answered,
    CursorLost,
    EventHint,
    Feed,
    FeedMissing,
    Item,
    Page,
    PageUnreadable,
    ProviderDispute,
    ProviderRefund,
    Slice,
    Unreadable,
)
from service.providers.stripe import answers
from service.providers.stripe.answers import Garbage, Object
from service.providers.stripe.api import PAGE_SIZES, StripeApi
from service.resilience.deadline import Deadline

log = logging.getLogger(__name__)

REFUNDS = "/v1/refunds"
DISPUTES = "/v1/disputes"
EVENTS = "/v1/events"

# At most 20, Stripe's limit; each can be about a payment with a final status.
EVENT_TYPES = (
    *("payment_intent.succeeded", "payment_intent.amount_capturable_updated"),
    *("payment_intent.canceled", "charge.captured", "charge.expired"),
    *("charge.refunded", "charge.refund.updated"),
    *("refund.created", "refund.updated", "refund.failed"),
    *("charge.dispute.created", "charge.dispute.updated", "charge.dispute.closed"),
    *("charge.dispute.funds_reinstated", "charge.dispute.funds_withdrawn"),
)
_OUR_MARKS = frozenset({"payment_id", "merchant_id", "key_digest"})
# Of one charge; Stripe itself allows fewer refunds than that.
_MOST_OF_ONE = 1000

_REFUND_KINDS = {
    "succeeded": OutcomeKind.SUCCEEDED,
    "pending": OutcomeKind.PENDING,
    "requires_action": OutcomeKind.PENDING,
    "failed": OutcomeKind.DECLINED,
    "canceled": OutcomeKind.DECLINED,
}


class StripeLater:
    """The lists of one account: charges below `path`, named by `charge_field` in other objects."""

    def __init__(
        self,
        api: StripeApi,
        path: str,
        *,
        charge_field: Literal["payment_intent", "charge"],
        of_listed: Callable[[Object], ProviderCharge | None],
    ) -> None:
        self._api = api
        self._path = path
        self._charge_field = charge_field
        self._of_listed = of_listed

    def page(self, feed: Feed, part: Slice, deadline: Deadline) -> Page:
        """One page of a feed; raises ProviderUnavailable, FeedMissing."""
        path, of_item, more = self._list(feed)
        query = [
            ("created[gte]", str(int(part.since.timestamp()))),
            ("created[lt]", str(int(part.until.timestamp()))),
            *more,
        ]
        if part.after is not None:
            query.append(("starting_after", part.after))
        with _read():
            answer, size = self._fetch(path, query, part.page_size, deadline)
        if answer.status != 200:
            raise _refusal(answer, feed, is_first=part.after is None)
        try:
            objects, after = _objects_of(answers.parse(answer), part.after)
        except Garbage as error:
            raise _unreadable_page(feed, str(error)) from error
        items: list[Item] = []
        unreadable: list[Unreadable] = []
        for found in objects:
            read = _reading(feed, of_item, found)
            if isinstance(read, Unreadable):
                unreadable.append(read)
            elif read is not None:
                items.append(read)
        return Page(items, after, size, unreadable)

    def read_again(self, feed: Feed, provider_ref: str, deadline: Deadline) -> Sequence[Item]:
        """One object by its own address; raises ProviderUnavailable."""
        if not answers.is_reference(provider_ref):
            raise PageUnreadable("The object has no readable id.")
        path, of_item, _ = self._list(feed)
        with _read():
            answer = self._api.get("look_up", f"{path}/{provider_ref}", deadline)
        if answer.status != 200:
            # Listed, but unknown by its own address: this does not prove that it moved no money.
            raise _refusal(answer, feed, is_first=False)
        try:
            item = of_item(answers.parse(answer))
        except Garbage as error:
            raise PageUnreadable("The object cannot be read.") from error
        return [] if item is None else [item]

    def _list(
        self, feed: Feed
    ) -> tuple[str, Callable[[Object], Item | None], list[tuple[str, str]]]:
        """The path of a feed, the parser of its objects, and its additional query."""
        types = [("types[]", name) for name in EVENT_TYPES]
        lists: dict[Feed, tuple[str, Callable[[Object], Item | None], list[tuple[str, str]]]] = {
            Feed.CHARGES: (self._path, self._of_listed, []),
            Feed.REFUNDS: (REFUNDS, self._refund, []),
            Feed.DISPUTES: (DISPUTES, self._dispute, []),
            Feed.EVENTS: (EVENTS, self._event, types),
        }
        return lists[feed]

    def refunds_of(self, charge_ref: str, deadline: Deadline) -> list[ProviderRefund]:
        """All refunds of a charge."""
        return [self._refund(one) for one in self._of_charge(REFUNDS, charge_ref, deadline)]

    def disputes_of(self, charge_ref: str, deadline: Deadline) -> list[ProviderDispute]:
        """All disputes about a charge."""
        return [self._dispute(one) for one in self._of_charge(DISPUTES, charge_ref, deadline)]

    def identify(self, charge_ref: str, deadline: Deadline) -> ProviderCharge | None:
        """The charge behind an event's reference; None: no charge of this kind exists."""
        if not answers.is_reference(charge_ref):
            return None
        with _read():
            answer = self._api.get("look_up", f"{self._path}/{charge_ref}", deadline)
            if answer.status == 404:
                return None
            if answer.status != 200:
                raise Garbage(f"a charge with status {answer.status}")
            return self._of_listed(answers.parse(answer))

    def _of_charge(self, path: str, charge_ref: str, deadline: Deadline) -> list[Object]:
        with _read():
            found: list[Object] = []
            query: dict[str, str] = {self._charge_field: charge_ref}
            for one in self._api.listed("list", path, query, deadline):
                found.append(one)
                if len(found) > _MOST_OF_ONE:
                    raise Garbage("more refunds or disputes than one charge can have")
            # A provider that ignores the filter lists the objects of all charges.
            return [one for one in found if one.get(self._charge_field) == charge_ref]

    def _fetch(
        self, path: str, query: list[tuple[str, str]], size: int, deadline: Deadline
    ) -> tuple[ProviderAnswer, int]:
        """The answer, and the page size with which the provider could send it."""
        for limit in (size, *(smaller for smaller in PAGE_SIZES if smaller < size)):
            address = f"{path}?{urlencode([('limit', str(limit)), *query])}"
            try:
                return self._api.get("list", address, deadline), limit
            except SentUnknown as failure:
                if failure.kind != "too_large":
                    raise
        raise PageUnreadable("One object alone is larger than what is read.")

    # --- Readings -------------------------------------------------------------------------------

    def _refund(self, found: Object) -> ProviderRefund:
        amount, kind = found.get("amount"), _REFUND_KINDS.get(str(found.get("status")))
        if not answers.is_reference(found.get("id")) or type(amount) is not int or kind is None:
            raise Garbage("a listed refund without id, amount or status")
        metadata = _metadata(found)
        failure = None
        if kind is OutcomeKind.DECLINED:
            code = answers.word(found.get("failure_reason") or found["status"])
            failure = ProviderDecline(code, "The refund failed.")
        return ProviderRefund(
            provider_ref=found["id"],
            charge_ref=_reference(found.get(self._charge_field)),
            amount_minor=amount,
            currency=answers.word(found.get("currency")),
            kind=kind,
            decline=failure,
            created_at=_moment(found),
            refund_id=metadata.get("refund_id"),
            payment_id=metadata.get("payment_id"),
            merchant_id=metadata.get("merchant_id"),
            key_digest=_digest(metadata.get("key_digest")),
        )

    def _dispute(self, found: Object) -> ProviderDispute:
        amount = found.get("amount")
        if not answers.is_reference(found.get("id")) or type(amount) is not int or amount < 1:
            raise Garbage("a dispute without id or amount")
        return ProviderDispute(
            provider_ref=found["id"],
            amount_minor=amount,
            currency=answers.word(found.get("currency")),
            reason=answers.word(found.get("reason")),
            status=answers.word(found.get("status")),
            opened_at=_moment(found),
            charge_ref=_reference(found.get(self._charge_field)),
        )

    def _event(self, found: Object) -> EventHint | None:
        """The event; None: it is about an object that we cannot look up."""
        data = found.get("data")
        about = data.get("object") if isinstance(data, dict) else None
        event_id, event_type = found.get("id"), found.get("type")
        if not isinstance(event_id, str) or not isinstance(event_type, str):
            raise Garbage("a listed event without id or type")
        if not isinstance(about, dict) or event_type not in EVENT_TYPES:
            return None
        metadata = _metadata(about)
        return EventHint(
            event_id=event_id[:255],
            type=event_type,
            charge_ref=_reference(about.get(self._charge_field)) or _reference(about.get("id")),
            payment_id=metadata.get("payment_id"),
            merchant_id=metadata.get("merchant_id"),
        )


def _reading(
    feed: Feed, of_item: Callable[[Object], Item | None], found: Any
) -> Item | Unreadable | None:
    """The item; None where it is unreadable and cannot be a charge of ours.

    One odd object must not block the list without end. An odd charge with readable metadata and
    without our mark belongs to another program; people also make refunds, disputes and events by hand.
    """
    try:
        if not isinstance(found, dict):
            raise Garbage("an item that is no object")
        return of_item(found)
    except Garbage as error:
        unreadable = _unreadable(feed, found, str(error))
        log.error(
            "sweep.item_unreadable",
            extra={"feed": feed.value, "provider_ref": unreadable.mark, "reason": str(error)},
        )
        is_foreign = feed is Feed.CHARGES and not may_be_ours(found)
        return None if is_foreign else unreadable


def _unreadable(feed: Feed, found: Any, reason: str) -> Unreadable:
    whole = found if isinstance(found, dict) else {}
    reference, metadata = _reference(whole.get("id")), _metadata(whole)
    created_at = None
    with suppress(Garbage):
        created_at = _moment(whole)
    text = json.dumps(found, sort_keys=True, default=str)
    return Unreadable(
        feed=feed,
        mark=reference or "sha256_" + hashlib.sha256(text.encode()).hexdigest(),
        provider_ref=reference,
        reason=reason,
        payment_id=metadata.get("payment_id"),
        merchant_id=metadata.get("merchant_id"),
        key_digest=_digest(metadata.get("key_digest")),
        created_at=created_at,
    )


def _refusal(answer: ProviderAnswer, feed: Feed, *, is_first: bool) -> Exception:
    """The exception for an answer other than 200 to a page."""
    if answer.status == 404 and is_first and feed is not Feed.CHARGES:
        return FeedMissing(feed.value)
    if answer.status in (400, 404) and not is_first:
        return CursorLost("The provider does not know the place to read on from.")
    pause_s = answers.retry_after_s(answer) or 1.0
    refused = f"The provider answers its list with status {answer.status}."
    kind = ProviderUnavailable if answer.status >= 500 else Answered
    return kind(refused, retry_after_s=pause_s)


def _unreadable_page(feed: Feed, reason: str) -> PageUnreadable:
    log.error("sweep.page_unreadable", extra={"feed": feed.value, "reason": reason})
    return PageUnreadable("A page of the provider's list cannot be read.")


def _objects_of(page: Object, after: str | None) -> tuple[list[Any], str | None]:
    """The objects of a page, and the next position in the list; raises Garbage."""
    items, has_more = page.get("data"), page.get("has_more")
    if not isinstance(items, list):
        raise Garbage("a list without its items")
    if not isinstance(has_more, bool):
        raise Garbage("a list that does not say whether it goes on")
    if not has_more:
        return items, None
    # Objects after the last readable id are repeated on the next page.
    read = [_reference(item.get("id")) for item in items if isinstance(item, dict)]
    last = next((name for name in reversed(read) if name is not None), None)
    if last is None or last == after:
        raise Garbage("a list that does not end")
    return items, last


def may_be_ours(found: Any) -> bool:
    """Whether an unreadable object may be a charge of ours: ours always have metadata."""
    metadata = found.get("metadata") if isinstance(found, dict) else None
    return not isinstance(metadata, dict) or not _OUR_MARKS.isdisjoint(metadata)


def _metadata(found: Object) -> Mapping[str, str]:
    metadata = found.get("metadata")
    if not isinstance(metadata, dict):
        return {}
    return {key: value for key, value in metadata.items() if isinstance(value, str)}


def _digest(found: str | None) -> str | None:
    # A person can write any text into the metadata.
    return found if found is not None and re.fullmatch(r"[0-9a-f]{64}", found) else None


def _reference(found: Any) -> str | None:
    # An expanded field contains the object instead of its id.
    named = found.get("id") if isinstance(found, dict) else found
    return named if answers.is_reference(named) else None


def _moment(found: Object) -> datetime:
    created = found.get("created")
    try:
        if type(created) is int:
            return datetime.fromtimestamp(created, UTC)
    except (OverflowError, ValueError, OSError):
        pass
    raise Garbage("an object without its time")


@contextmanager
def _read() -> Iterator[None]:
    """Translate errors of the transport and of the parsing into ProviderUnavailable."""
    try:
        yield
    except (TransportError, Garbage) as error:
        raise ProviderUnavailable("The provider's books could not be read.") from error
