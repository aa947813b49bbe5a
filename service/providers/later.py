"""The provider's records about existing charges: refunds, disputes, events, pages of lists."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Protocol

from service.errors import ProviderUnavailable
from service.providers.base import OutcomeKind, Provider, ProviderCharge, ProviderDecline
from service.resilience.deadline import Deadline

# The source under which both webhooks and the feed store events: an event that arrives by both
# is stored once.
EVENT_SOURCE = "stripe"


class Feed(StrEnum):
    """The lists that the sweep reads; each has its own checkpoint."""

    CHARGES = "charges"
    REFUNDS = "refunds"
    DISPUTES = "disputes"
    # Changes of objects of any age: the only list that is ordered by change.
    EVENTS = "events"


@dataclass(frozen=True, slots=True)
class ProviderRefund:
    """A refund in the provider's own books, made by us or by others."""

    provider_ref: str
    charge_ref: str | None
    amount_minor: int
    currency: str
    kind: OutcomeKind  # succeeded, pending or declined
    decline: ProviderDecline | None
    created_at: datetime
    # From our metadata; None: not made by us.
    refund_id: str | None = None
    payment_id: str | None = None
    merchant_id: str | None = None
    key_digest: str | None = None


@dataclass(frozen=True, slots=True)
class ProviderDispute:
    """A dispute in the provider's own books."""

    provider_ref: str
    amount_minor: int
    currency: str
    reason: str
    status: str
    opened_at: datetime
    charge_ref: str | None = None


@dataclass(frozen=True, slots=True)
class EventHint:
    """One event of the provider's feed: a hint, like its webhook."""

    event_id: str
    type: str
    # The charge that the event is about, at any depth of the object.
    charge_ref: str | None
    payment_id: str | None
    merchant_id: str | None


Item = ProviderCharge | ProviderRefund | ProviderDispute | EventHint


@dataclass(frozen=True, slots=True)
class Unreadable:
    """An unreadable object of a list that may be ours or about ours."""

    feed: Feed
    # Equal in each listing: its id, else a digest of the whole object.
    mark: str
    # None: it has no readable id, so it cannot be requested separately.
    provider_ref: str | None
    reason: str
    # From our metadata, if it is readable.
    payment_id: str | None = None
    merchant_id: str | None = None
    key_digest: str | None = None
    created_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Slice:
    """A part of a feed: from `since` to before `until`, in whole seconds, after the item `after`."""

    since: datetime
    until: datetime
    after: str | None = None
    page_size: int = 100


@dataclass(frozen=True, slots=True)
class Page:
    """One page of a slice, newest first."""

    items: Sequence[Item]
    # The item after which the next page begins; None: this was the slice's last page.
    after: str | None
    # The size that the provider could send; smaller than requested where objects are large.
    page_size: int
    # Objects that were on the page and are not in `items`.
    unreadable: Sequence[Unreadable] = ()


class Answered(ProviderUnavailable):
    """The provider gave a whole but unexpected answer: it is not down."""


class PageUnreadable(Answered):
    """The provider serves this page or object, but it is unreadable: the next try may meet it again."""


class CursorLost(Answered):
    """The provider has forgotten the item after which the slice continues."""


class FeedMissing(Exception):
    """This provider has no such list at all."""


class LaterProvider(Provider, Protocol):
    """A Provider with its records about existing charges. Each method raises Busy where it gets no
    answer; that proves nothing."""

    def page(self, feed: Feed, part: Slice, deadline: Deadline) -> Page:
        """One page; raises FeedMissing where the provider does not know the list, PageUnreadable
        and CursorLost where another slice may be had."""

    def read_again(self, feed: Feed, provider_ref: str, deadline: Deadline) -> Sequence[Item]:
        """One object that was unreadable in its list; empty: it needs no comparison. Raises
        PageUnreadable where it is still unreadable."""

    def refunds_of(self, charge_ref: str, deadline: Deadline) -> list[ProviderRefund]:
        """All refunds of a charge, made by us or by others."""

    def disputes_of(self, charge_ref: str, deadline: Deadline) -> list[ProviderDispute]:
        """All disputes about a charge."""

    def identify(self, charge_ref: str, deadline: Deadline) -> ProviderCharge | None:
        """The charge with that reference; None: none exists, or it belongs to another adapter."""
