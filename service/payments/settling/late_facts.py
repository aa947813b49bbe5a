"""Facts that contradict a settled payment, as values: relevant events and allowed transitions.

Pure. A settled payment changes only by a fact that the provider states about its own reference, and
each transition writes an event for merchants.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from service.payments.charge.model import Status
from service.payments.movements.model import Movement, MovementStatus
from service.providers.base import Outcome, OutcomeKind
from service.providers.later import ProviderRefund

# The mark in an event's detail by which the invariants recognise an allowed late transition.
LATE = "late"

ENDED_WITHOUT_MONEY = (Status.DECLINED, Status.EXPIRED, Status.CANCELED)
# not_executed is missing on purpose: it was proven, and its key may be free again, so that a second
# payment may exist beside this charge. A person must decide: an orphan, and a page.
LATE_MOVES: Mapping[Status, frozenset[Status]] = {
    **{
        status: frozenset({Status.SUCCEEDED, Status.REQUIRES_CAPTURE})
        for status in ENDED_WITHOUT_MONEY
    },
    Status.REQUIRES_CAPTURE: frozenset({Status.SUCCEEDED, Status.CANCELED}),
}

RESTING = (
    *(Status.SUCCEEDED, Status.REQUIRES_CAPTURE, Status.DECLINED),
    *(Status.NOT_EXECUTED, Status.CANCELED, Status.EXPIRED),
)
_UNPAID = (*ENDED_WITHOUT_MONEY, Status.NOT_EXECUTED)
_PAID = (Status.SUCCEEDED,)

# The provider's event types that can be news about a settled payment, with the statuses for which
# they are. An event about the payment's own, known success is no news.
NEWS: Mapping[str, tuple[Status, ...]] = {
    "payment_intent.succeeded": (*_UNPAID, Status.REQUIRES_CAPTURE),
    "payment_intent.amount_capturable_updated": _UNPAID,
    "payment_intent.canceled": (Status.REQUIRES_CAPTURE,),
    "charge.captured": (*_UNPAID, Status.REQUIRES_CAPTURE),
    "charge.expired": (Status.REQUIRES_CAPTURE,),
    "charge.refunded": (*_PAID, Status.REQUIRES_CAPTURE),
    "charge.refund.updated": _PAID,
    "refund.created": _PAID,
    "refund.updated": _PAID,
    "refund.failed": _PAID,
    "charge.dispute.created": RESTING,
    "charge.dispute.updated": RESTING,
    "charge.dispute.closed": RESTING,
    "charge.dispute.funds_reinstated": RESTING,
    "charge.dispute.funds_withdrawn": RESTING,
}
# Types about money that has moved: they wait until the payment is settled.
AFTERWARDS = tuple(name for name in NEWS if "refund" in name or "dispute" in name)


def is_news(event_type: str, status: Status | None) -> bool:
    """Whether an event can be news; True for an unknown or open payment."""
    statuses = NEWS.get(event_type)
    if statuses is None:
        return False
    return status is None or status not in RESTING or status in statuses


def late_target(outcome: Outcome) -> Status | None:
    """The status for the provider's present state of a charge; None: no money has moved."""
    if outcome.kind is OutcomeKind.SUCCEEDED:
        return Status.REQUIRES_CAPTURE if outcome.amount_capturable > 0 else Status.SUCCEEDED
    if outcome.kind is OutcomeKind.NOT_EXECUTED and outcome.error == "canceled":
        return Status.CANCELED
    return None


def late_sources(target: Status) -> list[str]:
    """The settled statuses from which a late fact may move a payment to `target`."""
    return [source.value for source, targets in LATE_MOVES.items() if target in targets]


def row_of(found: ProviderRefund, known: Sequence[Movement]) -> Movement | None:
    """The row of the provider's refund among a payment's `known` ones; None: none of them.

    The row with its reference comes first, even if its metadata names another. Without such a row
    the metadata decides: a row that keeps its key comes before one that was withdrawn and freed
    it, because a retry under the key adopts the refund of the withdrawn call.
    """
    holder = next((one for one in known if one.provider_ref == found.provider_ref), None)
    named = [one for one in known if one.provider_ref is None and _is_named(found, one)]
    named.sort(key=lambda movement: movement.withdrawn)
    return holder or next(iter(named), None)


def _is_named(found: ProviderRefund, movement: Movement) -> bool:
    has_our_key = found.key_digest is not None and found.key_digest == movement.key_digest
    return has_our_key or found.refund_id == movement.id


def contradicts(found: ProviderRefund, status: MovementStatus) -> bool:
    """Whether the provider's state of a refund differs from our row's."""
    return {
        OutcomeKind.SUCCEEDED: status is not MovementStatus.SUCCEEDED,
        OutcomeKind.DECLINED: status is not MovementStatus.DECLINED,
        OutcomeKind.PENDING: status is MovementStatus.DECLINED,
    }.get(found.kind, False)


# A release arrives with the capture; a person's refund of exactly the rest does not.
def released_with_capture(
    refunds: list[ProviderRefund], *, authorised_minor: int, captured_minor: int
) -> str | None:
    """The reference of the "refund" that is only the rest of a partly captured reservation.

    Stripe records the release of the uncaptured amount as a refund of it, the oldest one.
    """
    rest_minor = authorised_minor - captured_minor
    if rest_minor <= 0 or not refunds:
        return None
    oldest = min(refunds, key=lambda refund: refund.created_at)
    is_release = oldest.refund_id is None and oldest.amount_minor == rest_minor
    return oldest.provider_ref if is_release else None
