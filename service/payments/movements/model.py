"""Captures, voids and refunds as values, and what a provider's answer means for them. Pure."""

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
# The provider's word that an authorisation was released: nothing is held any more.
CANCELED = "canceled"


class Kind(StrEnum):
    """What is done with a payment's money after it was authorised."""

    CAPTURE = "capture"
    VOID = "void"
    REFUND = "refund"


class MovementStatus(StrEnum):
    """Where a movement is. Until it has ended, its amount counts as spent."""

    ACCEPTED = "accepted"  # Stored, and not executed by any call yet: it will be sent.
    SENDING = "sending"  # May have been executed.
    PENDING = "pending"  # The provider has it and has not decided yet.
    SUCCEEDED = "succeeded"
    DECLINED = "declined"  # The provider's definite no.
    UNKNOWN = "unknown"  # The provider's answer is missing; the reconciler is finding out.
    NEEDS_REVIEW = "needs_review"  # No proof either way could be had: a person decides.


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
    # None: all that was authorised (a refund always says how much).
    amount_minor: int | None = None
    reason: str | None = None

    @property
    def key_digest(self) -> str:
        """What stands for the client's key in the provider's books."""
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
    # Counts the provider keys used: a new one only when the last can certainly execute nothing.
    key_series: int
    # Of merchant, client key and operation, in hexadecimal; None: a row of an older version.
    key_digest: str | None
    # The provider replayed an error that it saved under the key: the next series may begin.
    key_spent: bool
    # A caller was told that it is ours: only then the background sends it.
    promised: bool
    # Ended unsent: its key was freed, and may belong to another movement by now.
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
    # Since it came into doubt, by the same clock; where it is not, since it was sent.
    doubt_age_s: float | None
    created_at: datetime
    updated_at: datetime

    @property
    def id(self) -> str:
        """As people see it: `ref_` for a refund; captures and voids are told of in the timeline."""
        return f"{_PREFIXES[self.kind]}{self.movement_id.hex}"

    @property
    def provider_key(self) -> str:
        """Derived, so that whoever picks the movement up again uses the very same key."""
        if self.key_digest is None:
            return f"hf-{self.movement_id.hex}-{self.key_series}"
        return provider_key(self.key_digest, self.key_series)

    @property
    def has_ended(self) -> bool:
        return self.status in ENDED

    @property
    def next_check_at(self) -> datetime | None:
        """When the reconciler looks next, where it is known."""
        return None if self.leased or self.has_ended else self.due_at

    @property
    def last_error(self) -> str | None:
        """How the last call that was sent ended: its error's word."""
        return self.attempts[-1]["error"] if self.attempts else None


REFUND_PREFIX = "ref_"
_PREFIXES = {Kind.CAPTURE: "cap_", Kind.VOID: "void_", Kind.REFUND: REFUND_PREFIX}


@dataclass(frozen=True, slots=True)
class Settlement:
    """What is certain after an answer, about the movement and about its payment."""

    status: MovementStatus
    decline: ProviderDecline | None = None
    # What the payment becomes with it; None: it stays as it is.
    payment_status: Status | None = None
    amount_captured_minor: int = 0


def finding(movement: Movement, outcome: Outcome) -> Settlement | None:
    """What the outcome of a call or a look-up settles; None where it settles nothing."""
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
            # The payer's bank refused the payment meanwhile: nothing is held. What the payment
            # itself becomes is for its own look-up to write.
            return Settlement(MovementStatus.SUCCEEDED)
        return Settlement(MovementStatus.DECLINED, outcome.decline)
    return None


_KEY_REUSED = ProviderDecline(
    "idempotency_key_reused", "Another amount was given back under this key before."
)


def is_absent(movement: Movement, outcome: Outcome) -> bool:
    """Whether a look-up proved that no call of ours has been executed by now."""
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
    """Whether the answer shows that the key of this series can execute nothing any more.

    A used key is spent for a capture or a void, which the provider's own state allows once; for a
    refund it is proof of an earlier one.
    """
    is_used = outcome.error == KEY_USED and movement.kind is not Kind.REFUND
    return is_used or (outcome.is_replay and outcome.error == "http_5xx")


_REFUND_STATUSES = {
    OutcomeKind.SUCCEEDED: MovementStatus.SUCCEEDED,
    OutcomeKind.PENDING: MovementStatus.PENDING,
    OutcomeKind.DECLINED: MovementStatus.DECLINED,
}
