"""The interface of every payment provider, and the five kinds of outcome."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Protocol

from service.providers.amounts import AmountTable
from service.resilience.deadline import Deadline

# A provider keeps a key for at least 24 h; past this its reuse could be a second charge.
KEY_LIFETIME = timedelta(hours=20)
# The error of an answer which says that our key was used for another call before.
KEY_USED = "key_used"


class OutcomeKind(StrEnum):
    """Our knowledge about the money after a call."""

    SUCCEEDED = "succeeded"  # Moved, or reserved when `amount_capturable` says so.
    PENDING = "pending"  # The provider holds it; nothing moved yet (prepared, processing, action).
    DECLINED = "declined"  # Definitely refused; never send it again with this method.
    NOT_EXECUTED = "not_executed"  # Certainly did not move, and will not without another call.
    UNKNOWN = "unknown"  # May have moved. Doubt is never rounded to success or failure.


class Stage(StrEnum):
    """How far a call got."""

    NOT_SENT = "not_sent"  # No byte of the request can have reached the provider.
    SENT_UNKNOWN = "sent_unknown"  # It may have reached the provider; no whole answer came back.
    ANSWERED = "answered"  # The provider's own, whole answer.


# Not executed: the provider's books show that the client's key made another movement before.
KEY_REUSED = "key_reused"


@dataclass(frozen=True, slots=True)
class ProviderDecline:
    """The provider's reason for a refusal; `code` is the provider's own (Stripe's decline codes)."""

    code: str
    message: str
    # The provider refused the request and asked no bank: the reason is about the request, not the card.
    is_request: bool = False
    # The caller's own field that the provider objects to, where it is one.
    field: str | None = None

    def document(self) -> dict[str, str]:
        """The form that the payment's row stores and callers see."""
        told = {"code": self.code, "message": self.message}
        told["type"] = "request" if self.is_request else "card"
        return told if self.field is None else {**told, "field": self.field}


@dataclass(frozen=True, slots=True)
class PayerAction:
    """The data that finishes 3-D Secure, with its secrets: for the payment's creator, never stored."""

    next_action: Mapping[str, Any] = field(repr=False)
    client_secret: str | None = field(repr=False)


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of one call to a provider. Amounts are integers in minor units."""

    kind: OutcomeKind
    stage: Stage
    provider_ref: str | None = None
    # Reserved but not captured: the payment waits for a capture.
    amount_capturable: int = 0
    amount_received: int = 0
    decline: ProviderDecline | None = None
    # The action that the provider wants from the payer (3-D Secure), without its secrets.
    next_action: Mapping[str, Any] | None = None
    payer_action: PayerAction | None = None
    # A word from a closed set (metrics): timeout, connect_timeout, refused, dns, tls, reset,
    # truncated, garbage, too_large, http_409, http_429, http_4xx, http_5xx, mismatch, breaker_open,
    # bulkhead_full, other_provider, deadline, internal; key_used: our idempotency key was used for
    # another call before; KEY_REUSED; canceled: the call was a cancel, and not_executed its success.
    error: str | None = None
    # The library's own text, for the log and the evidence; no secrets.
    error_detail: str | None = None
    retry_after_s: float | None = None
    # The breaker's state when the call was let through or refused; None: the call had no guard.
    breaker: str | None = None
    # The provider replayed an answer saved under our key: the key cannot execute anything more.
    is_replay: bool = False
    ms: int = 0


@dataclass(frozen=True, slots=True)
class Charge:
    """The data of one payment that a provider needs."""

    payment_id: str
    merchant_id: str
    amount_minor: int
    currency: str
    payment_method: str
    # The idempotency key for this attempt series (payments/charge/provider_keys.py); never the client's.
    provider_key: str
    provider_ref: str | None = None
    capture_automatically: bool = True
    reference: str | None = None
    customer: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    created_at: datetime | None = None
    # Stored at the provider with the charge: identifies the payment when our row was lost.
    key_digest: str | None = None
    # Whether a look-up may send the same key once more (one_shot): the caller has recorded it as sent.
    may_send_again: bool = False
    # The charge was sent before: a refusal of this call does not prove that the earlier one moved nothing.
    is_repeat: bool = False
    # Our key was used for another call before: the charge may be older than our row.
    is_older: bool = False


@dataclass(frozen=True, slots=True)
class Refund:
    """The data of one refund that a provider needs."""

    refund_id: str
    payment_id: str
    provider_ref: str  # of the charge
    amount_minor: int
    currency: str
    provider_key: str
    reason: str | None = None
    # Stored at the provider with the refund, so that its webhooks identify the right row.
    merchant_id: str | None = None
    # As for a charge: finds the refund when our row was lost.
    key_digest: str | None = None
    # The reference of the refund itself. A known reference decides alone, before any metadata.
    refund_ref: str | None = None


@dataclass(frozen=True, slots=True)
class ProviderCharge:
    """A charge in the provider's own books (the reverse sweep compares them with ours)."""

    provider_ref: str
    payment_id: str | None  # from our metadata; None: not made by us
    amount_minor: int
    currency: str
    outcome: Outcome
    created_at: datetime
    merchant_id: str | None = None  # from our metadata, like `payment_id`
    key_digest: str | None = None  # from our metadata: the digest of the client's key


class Provider(Protocol):
    """A payment provider. No method raises for a fault of the provider or the network: doubt is an
    Outcome. All waits end at `deadline`; every method is thread-safe."""

    name: str
    # True: `prepare` makes the charge known without moving money and `confirm` moves it.
    # False: `prepare` does nothing and `confirm` does both (one_shot).
    two_phase: bool

    @property
    def amounts(self) -> AmountTable:
        """The provider's units and accepted amounts: checked before a payment is stored."""

    @property
    def available(self) -> bool:
        """False while a call would be refused locally without being sent (breaker open)."""

    def prepare(self, charge: Charge, deadline: Deadline) -> Outcome:
        """Make the charge known without moving money: `pending` with a `provider_ref`."""

    def confirm(self, charge: Charge, deadline: Deadline) -> Outcome:
        """Move (or reserve) the money, once for each `provider_key`."""

    def look_up(self, charge: Charge, deadline: Deadline) -> Outcome:
        """Find the state of the charge. It starts nothing: at most it completes the attempt in doubt
        (one_shot, the same key again). `not_executed` only with proof of absence."""

    def capture(self, charge: Charge, amount_minor: int, key: str, deadline: Deadline) -> Outcome:
        """Take reserved money, or a part of it, once for each `key`; in doubt: `look_up`."""

    def cancel(self, charge: Charge, key: str, deadline: Deadline) -> Outcome:
        """Release reserved money: `not_executed` with error "canceled" is the success; in doubt: `look_up`."""

    def refund(self, refund: Refund, deadline: Deadline) -> Outcome:
        """Give money back, once for each `provider_key`."""

    def look_up_refund(self, refund: Refund, deadline: Deadline) -> Outcome:
        """Find the state of the refund; moves no money. `not_executed` only with proof of absence."""

    def list_since(self, since: datetime, deadline: Deadline) -> Iterator[ProviderCharge]:
        """All charges made since, oldest or newest first; raises Busy where a page cannot be read."""
