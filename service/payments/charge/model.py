"""Payments as values: statuses, the allowed transitions, requests and ids. Pure."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, Literal
from uuid import UUID

from service.ids import payment_id_text
from service.payments.charge.provider_keys import provider_key
from service.providers.base import KEY_USED, Outcome, OutcomeKind, Stage


class Status(StrEnum):
    """The status of a payment. `docs/architecture.md` draws the transitions."""

    ACCEPTED = "accepted"  # Stored, not sent: it cannot have been charged.
    SENDING = "sending"  # May have been charged.
    SUCCEEDED = "succeeded"
    REQUIRES_CAPTURE = "requires_capture"
    REQUIRES_ACTION = "requires_action"
    DECLINED = "declined"
    UNKNOWN = "unknown"  # The provider's answer is missing; the reconciler looks it up.
    NOT_EXECUTED = "not_executed"  # Proven not to have been charged.
    NEEDS_REVIEW = "needs_review"  # No proof was found for either outcome: a person decides.
    CANCELED = "canceled"
    EXPIRED = "expired"


# A payment's status never changes after these; a refund is a separate row.
TERMINAL = frozenset(
    {Status.SUCCEEDED, Status.DECLINED, Status.NOT_EXECUTED, Status.CANCELED, Status.EXPIRED}
)
OPEN = frozenset(Status) - TERMINAL
# Statuses that are answered with 202: we own the payment, and it is not final yet.
UNSETTLED = frozenset({Status.ACCEPTED, Status.SENDING, Status.UNKNOWN, Status.NEEDS_REVIEW})

# Every write repeats this table in its WHERE (transitions.py).
MOVES: Mapping[Status, frozenset[Status]] = {
    Status.ACCEPTED: frozenset(
        {
            Status.SENDING,
            # Charged by the provider's books: a failover lost our record of it.
            Status.SUCCEEDED,
            Status.REQUIRES_CAPTURE,
            Status.DECLINED,  # The provider refused to prepare it.
            Status.NOT_EXECUTED,
            Status.CANCELED,
            Status.EXPIRED,
        }
    ),
    Status.SENDING: frozenset(
        {
            Status.SUCCEEDED,
            Status.REQUIRES_CAPTURE,
            Status.REQUIRES_ACTION,
            Status.DECLINED,
            Status.UNKNOWN,
            Status.NOT_EXECUTED,
            Status.CANCELED,
        }
    ),
    Status.UNKNOWN: frozenset(
        {
            Status.SUCCEEDED,
            Status.REQUIRES_CAPTURE,
            Status.REQUIRES_ACTION,
            Status.DECLINED,
            Status.NOT_EXECUTED,
            Status.NEEDS_REVIEW,
            Status.CANCELED,
        }
    ),
    Status.NEEDS_REVIEW: frozenset(
        {
            Status.SUCCEEDED,
            Status.REQUIRES_CAPTURE,
            Status.REQUIRES_ACTION,
            Status.DECLINED,
            Status.NOT_EXECUTED,
            Status.CANCELED,
        }
    ),
    Status.REQUIRES_ACTION: frozenset(
        {
            Status.SUCCEEDED,
            Status.REQUIRES_CAPTURE,
            Status.DECLINED,
            Status.NOT_EXECUTED,
            Status.CANCELED,
        }
    ),
    Status.REQUIRES_CAPTURE: frozenset({Status.SUCCEEDED, Status.CANCELED}),
    **{status: frozenset() for status in TERMINAL},
}


def fact_status(outcome: Outcome) -> Status | None:
    """The status for a definite outcome; None while the answer is open."""
    match outcome.kind:
        case OutcomeKind.SUCCEEDED if outcome.amount_capturable > 0:
            return Status.REQUIRES_CAPTURE
        case OutcomeKind.SUCCEEDED:
            return Status.SUCCEEDED
        case OutcomeKind.DECLINED:
            return Status.DECLINED
        case OutcomeKind.PENDING if outcome.next_action is not None:
            return Status.REQUIRES_ACTION
    # Not executed is a fact too, but its consequence is a choice: send again, or give up.
    return None


def sources_of(target: Status) -> list[Status]:
    """The statuses from which a fact may move a payment to `target`."""
    return [source for source, targets in MOVES.items() if target in targets]


@dataclass(frozen=True, slots=True)
class ChargeRequest:
    """A validated request to pay. `fingerprint` distinguishes a retry from another request."""

    merchant_id: UUID
    idempotency_key: str
    fingerprint: bytes
    amount_minor: int
    currency: str
    payment_method: str
    reference: str | None = None
    capture_method: Literal["automatic", "manual"] = "automatic"
    customer: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    on_outage: Literal["queue", "reject"] = "queue"
    expires_at: datetime | None = None
    # Answer 202 as soon as the payment is stored (`Prefer: respond-async`).
    respond_async: bool = False


@dataclass(frozen=True, slots=True)
class LostCharge:
    """A charge in the provider's books that was made under a key of ours, by a row that is lost."""

    provider_ref: str
    amount_minor: int
    currency: str


@dataclass(frozen=True, slots=True)
class Loss:
    """Why a payment that was just claimed may have been charged before, by a row that is lost."""

    # The provider's books from here on prove it; None: from when on is not known.
    since: datetime | None
    # The charge that the sweep has found under the same client key, with no payment here.
    charge: LostCharge | None = None


@dataclass(frozen=True, slots=True)
class Payment:
    """One row of `payments`. Amounts are integers in minor units; times have their zone."""

    merchant_id: UUID
    payment_id: UUID
    status: Status
    amount_minor: int
    currency: str
    payment_method: str
    reference: str | None
    capture_method: str
    customer: str | None
    metadata: Mapping[str, str]
    on_outage: str
    expires_at: datetime | None
    amount_captured_minor: int
    amount_refunded_minor: int
    provider: str
    provider_ref: str | None
    # Counts the provider keys used: a new series needs proof that the last was not executed.
    key_series: int
    decline: Mapping[str, str] | None
    next_action: Mapping[str, Any] | None
    attempts: list[Mapping[str, Any]]
    # The compare-and-set number of the lease: only the holder of the newest may write a guess.
    fence: int
    leased: bool
    look_ups: int
    due_at: datetime | None
    # Seconds since the last start of the money call, by the database's clock; None: never.
    sent_age_s: float | None
    # Seconds since the doubt began; without a doubt, since it was sent.
    doubt_age_s: float | None
    # By the database's clock: the client's time limit for a queued payment has passed.
    is_expired: bool
    created_at: datetime
    updated_at: datetime
    # The digest of the client's key; None: an old row, with a provider key made from its own id.
    key_digest: str | None = None
    # A caller was promised that we own it; the background sends only such payments.
    promised: bool = True
    # The series with a saved error answer: it cannot execute anything more.
    spent_series: int | None = None
    # Another payment under its key may have been charged since then, and its row be lost: the books
    # are searched from here before anything is sent. None: no such payment was possible.
    books_from: datetime | None = None
    # Set only by the claim: the books are read first, also before its caller's own call.
    loss: Loss | None = None

    @property
    def id(self) -> str:
        """The public form: `pay_` and 32 hexadecimal digits."""
        return payment_id_text(self.payment_id)

    @property
    def provider_key(self) -> str:
        """Derived, so that every later holder of the payment uses the same key."""
        return provider_key(self.key_digest or self.payment_id.hex, self.key_series)

    @property
    def is_spent(self) -> bool:
        """The provider's saved answer to the current key is an error: the key is used up."""
        return self.spent_series == self.key_series

    @property
    def series_after(self) -> int:
        """The series with which another payment under the same, freed key begins."""
        return self.key_series + 1 if self.is_spent else self.key_series

    @property
    def is_freed_keys_next(self) -> bool:
        """Not sent yet, and not the first payment under its client's key."""
        return self.key_digest is not None and self.key_series > 1 and not self.attempts

    @property
    def was_sent(self) -> bool:
        """An earlier call may have moved the money: recorded as sent, or looked up since."""
        return self.look_ups > 0 or any(
            attempt["op"] == "confirm"
            and attempt["stage"] != Stage.NOT_SENT.value
            and attempt["error"] != "http_429"
            for attempt in self.attempts
        )

    @property
    def had_key_used(self) -> bool:
        """The provider knew our key from another call: an earlier row of ours may be lost."""
        return any(attempt["error"] == KEY_USED for attempt in self.attempts)

    @property
    def was_confirmed_elsewhere(self) -> bool:
        """The provider knew the key of our confirm from another charge's."""
        return any(
            attempt["op"] == "confirm" and attempt["error"] == KEY_USED for attempt in self.attempts
        )

    @property
    def is_prepared_in_doubt(self) -> bool:
        """A prepare was answered with something other than an unconfirmed charge; still unknown."""
        has_prepared = any(attempt["op"] == "prepare" for attempt in self.attempts)
        return self.provider_ref is None and has_prepared

    @property
    def is_terminal(self) -> bool:
        return self.status in TERMINAL

    @property
    def next_check_at(self) -> datetime | None:
        """The time of the next look-up, if it is known."""
        return None if self.leased or self.is_terminal else self.due_at


@dataclass(frozen=True, slots=True)
class Event:
    """One step of a payment, written in the same statement as the step."""

    event_id: UUID
    payment_id: UUID
    type: str
    detail: Mapping[str, Any]
    created_at: datetime


def fingerprint(method: str, route: str, body: Mapping[str, Any]) -> bytes:
    """SHA-256 over method, route template and canonical JSON: equal for equal requests."""
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(f"{method} {route}\n{canonical}".encode()).digest()
