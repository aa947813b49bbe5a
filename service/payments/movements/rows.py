"""Rows of captures, voids and refunds as values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any
from uuid import UUID

from service.database.pool.pool import Checkout
from service.payments.charge.model import Payment
from service.payments.charge.reader import payment_of
from service.payments.movements import statements
from service.payments.movements.model import Kind, Movement, MovementStatus

_WIDTH = len(fields(Movement))


def movement_of(row: Sequence[Any]) -> Movement:
    merchant_id, movement_id, payment_id, kind, status, *rest = row
    return Movement(
        merchant_id,
        movement_id,
        payment_id,
        Kind(kind),
        MovementStatus(status),
        *rest,
    )


def both_of(row: Sequence[Any]) -> tuple[Movement, Payment]:
    return movement_of(row[:_WIDTH]), payment_of(row[_WIDTH:])


def read_both(checkout: Checkout, merchant_id: UUID, movement_id: UUID) -> tuple[Movement, Payment]:
    """The current rows of a movement and its payment."""
    named = {"merchant_id": merchant_id, "movement_id": movement_id}
    return both_of(checkout.run(statements.GET, named)[0])
