"""Why a claim could not reserve its amount, from the payment's current state."""

from __future__ import annotations

from typing import Any

from service.errors import (
    AmountNotRepresentable,
    Busy,
    NotFound,
    ValidationFailed,
    WrongState,
)
from service.payments.charge.model import Status
from service.payments.movements.model import Kind, MovementRequest
from service.providers.amounts import AmountTable

_ALLOWED = {
    Kind.REFUND: frozenset[str](),
    Kind.CAPTURE: frozenset({Status.REQUIRES_CAPTURE.value}),
    Kind.VOID: frozenset(
        {Status.REQUIRES_CAPTURE.value, Status.REQUIRES_ACTION.value, Status.ACCEPTED.value}
    ),
}


def refusal(
    request: MovementRequest, reserved: tuple[Any, ...] | None, amounts: AmountTable
) -> Exception:
    """The reason for the payment's refusal, from its current state."""
    if reserved is None:
        return NotFound("There is no such payment.")
    status, amount, left, settling, provider_ref, currency = reserved
    payment_id = f"pay_{request.payment_id.hex}"
    if request.kind is Kind.REFUND and status == Status.SUCCEEDED and provider_ref is not None:
        if (request.amount_minor or 0) > left:
            return _too_much(f"more than what is left to refund ({left})")
    elif status in _ALLOWED[request.kind]:
        if settling:
            return WrongState("A capture or a void is under way.", payment_id=payment_id)
        if (request.amount_minor or 0) > amount:
            return _too_much(f"more than what was authorised ({amount})")
    else:
        return WrongState(
            f"A {request.kind.value} is not possible while the payment is {status}.",
            payment_id=payment_id,
        )
    unfit = amounts.part_refusal(request.amount_minor or 0, currency)
    if unfit is not None:
        return AmountNotRepresentable(unfit.field, unfit.reason)
    return Busy("The payment changed at the same moment; send it again.")


def _too_much(reason: str) -> ValidationFailed:
    return ValidationFailed(
        "Refused: amount.", fields=[{"field": "amount", "reason": f"is {reason}"}]
    )
