"""Captures, voids and refunds as values, and their settlement by a provider's answer. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

from service.payments.charge.model import Status
from service.payments.charge.provider_keys import key_digest, provider_key
from service.providers.base import KEY_REUSED, Outcome, OutcomeKind, ProviderDecline, Stage

# The provider knows our key with other parameters.
KEY_USED = "key_used"
# The provider's error for a released authorisation: no money is held any more.
CANCELED = "canceled"


class Kind(StrEnum):
    """The kind of movement of a payment's authorised money."""

    CAPTURE = "capture"
    VOID = "void"
    REFUND = "refund"


class MovementStatus(StrEnum):
    """The status of a movement. Until it has ended, its amount counts as spent."""

    ACCEPTED = "accepted"  # Stored, not executed by any call yet: it will be sent.
    SENDING = "sending"  # May have been executed.
    PENDING = "pending"  # The provider has received it and has not decided yet.
    SUCCEEDED = "succeeded"
    DECLINED = "declined"  # The provider's definite refusal.
    UNKNOWN = "unknown"  # The provider's answer is missing; the reconciler looks it up.
    NEEDS_REVIEW = "needs_review"  # No proof was found for either outcome: a person decides.


ENDED = frozenset({MovementStatus.SUCCEEDED, MovementStatus.DECLINED})
OPEN = frozenset(MovementStatus) - ENDED


@dataclass(frozen=True, slots=True)
class MovementRequest:
    """A validated request to capture, void or refund."""

    merchant_id: UUID
    payment_id: UUID
    kind: Kind
    idempotency_key: str
    fingerprint: bytes
    # None: the whole authorised amount (a refund always has an amount).
    amount_minor: int | None = None
    reason: str | None = None

    @property
    def key_digest(self) -> str:
        """The digest of the client's key in the provider's books."""
        return key_digest(self.merchant_id, self.idempotency_key, self.kind.value)


@dataclass(frozen=True, slots=True)
class Movement:
    """One row of `movements`. Amounts are integers in minor units; times carry their zone."""

    merchant_id: UUID
    movement_id: UUID
    payment_id: UUID
    kind: Kind
    status: MovementStatus
    amount_minor: int
    reason: str | None
    provider_ref: str | None
    # Counts the provider keys used: a new one only when the last certainly cannot execute anything.
    key_series: int
    # Of merchant, client key and operation, in hexadecimal; None: a row of an older version.
    key_digest: str | None
    # The provider replayed an error that it saved under the key: the next series may begin.
    key_spent: bool
    # A caller was promised that it is ours: the background sends only such movements.
    promised: bool
    # Ended unsent: its key is free, and may belong to another movement by now.
    withdrawn: bool
    decline: Mapping[str, str] | None
    attempts: list[Mapping[str, Any]]
    # The compare-and-set number of the lease, as a payment's.
    fence: int
    leased: bool
    look_ups: int
    due_at: datetime | None
    # Seconds since it was last sent, by the database's clock.
    sent_age_s: float | None
    # Seconds since the doubt began, by the same clock; without a doubt, since it was sent.
    doubt_age_s: float | None
    created_at: datetime
    updated_at: datetime

    @property
    def id(self) -> str:
        """The public form: `ref_` for a refund; captures and voids are only in the timeline."""
        return f"{_PREFIXES[self.kind]}{self.movement_id.hex}"

    @property
    def provider_key(self) -> str:
        """Derived, so that every later holder of the movement uses the same key."""
        if self.key_digest is None:
            return f"hf-{self.movement_id.hex}-{self.key_series}"
        return provider_key(self.key_digest, self.key_series)

    @property
    def has_ended(self) -> bool:
        return self.status in ENDED

    @property
    def next_check_at(self) -> datetime | None:
        """The time of the next look-up, if it is known."""
        return None if self.leased or self.has_ended else self.due_at

    @property
    def last_error(self) -> str | None:
        """The error word of the last call that was sent."""
        return self.attempts[-1]["error"] if self.attempts else None


REFUND_PREFIX = "ref_"
_PREFIXES = {Kind.CAPTURE: "cap_", Kind.VOID: "void_", Kind.REFUND: REFUND_PREFIX}


@dataclass(frozen=True, slots=True)
class Settlement:
    """The certain facts after an answer, about the movement and its payment."""

    status: MovementStatus
    decline: ProviderDecline | None = None
    # The payment's new status; None: unchanged.
    payment_status: Status | None = None
    amount_captured_minor: int = 0


def finding(movement: Movement, outcome: Outcome) -> Settlement | None:
    """The settlement by the outcome of a call or a look-up; None where it settles nothing."""
    if movement.kind is Kind.REFUND:
        if outcome.kind is OutcomeKind.NOT_EXECUTED and outcome.error == KEY_REUSED:
            return Settlement(MovementStatus.DECLINED, _KEY_REUSED)
        status = _REFUND_STATUSES.get(outcome.kind)
        return None if status is None else Settlement(status, outcome.decline)
    if outcome.kind is OutcomeKind.SUCCEEDED and outcome.amount_received > 0:
        return _captured(movement, outcome.amount_received)
    if outcome.kind is OutcomeKind.NOT_EXECUTED and outcome.error == CANCELED:
        return _released(movement)
    if outcome.kind is OutcomeKind.DECLINED:
        if movement.kind is Kind.VOID:
            # The payer's bank has refused the payment: no money is held. The payment's own look-up
            # writes its new status.
            return Settlement(MovementStatus.SUCCEEDED)
        return Settlement(MovementStatus.DECLINED, outcome.decline)
    return None


_KEY_REUSED = ProviderDecline(
    "idempotency_key_reused", "Another amount was given back under this key before."
)


def is_absent(movement: Movement, outcome: Outcome) -> bool:
    """Whether a look-up proved that no call of ours was executed until now."""
    if outcome.stage is not Stage.ANSWERED:
        return False
    if movement.kind is Kind.REFUND and movement.provider_ref is not None:
        # The provider made this refund: books that lack it prove nothing.
        return False
    if outcome.kind is OutcomeKind.NOT_EXECUTED or outcome.error == KEY_REUSED:
        return outcome.error in (None, KEY_REUSED)
    is_reserved = outcome.kind is OutcomeKind.SUCCEEDED and outcome.amount_capturable > 0
    waits_for_payer = outcome.kind is OutcomeKind.PENDING and outcome.next_action is not None
    return movement.kind is not Kind.REFUND and (is_reserved or waits_for_payer)


def _captured(movement: Movement, received_minor: int) -> Settlement:
    is_ours = movement.kind is Kind.CAPTURE and received_minor == movement.amount_minor
    return Settlement(
        MovementStatus.SUCCEEDED if is_ours else MovementStatus.DECLINED,
        None
        if is_ours
        else ProviderDecline("already_captured", "The payment was captured otherwise."),
        Status.SUCCEEDED,
        received_minor,
    )


def _released(movement: Movement) -> Settlement:
    is_ours = movement.kind is Kind.VOID
    return Settlement(
        MovementStatus.SUCCEEDED if is_ours else MovementStatus.DECLINED,
        None if is_ours else ProviderDecline("canceled", "The authorisation was released."),
        Status.CANCELED,
    )


def spends_key(movement: Movement, outcome: Outcome) -> bool:
    """Whether the answer shows that the key of this series cannot execute anything any more.

    A used key is used up for a capture or a void, which the provider's own state allows once; for a
    refund it proves an earlier one.
    """
    is_used = outcome.error == KEY_USED and movement.kind is not Kind.REFUND
    return is_used or (outcome.is_replay and outcome.error == "http_5xx")


_REFUND_STATUSES = {
    OutcomeKind.SUCCEEDED: MovementStatus.SUCCEEDED,
    OutcomeKind.PENDING: MovementStatus.PENDING,
    OutcomeKind.DECLINED: MovementStatus.DECLINED,
}


def named_in_detail(kind: Kind, movement_id: UUID) -> dict[str, str]:
    """The timeline's detail that identifies the movement."""
    return {f"{kind.value}_id": movement_id.hex}
