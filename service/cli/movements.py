"""`payments resolve` for one refund, capture or void in doubt."""

from __future__ import annotations

import argparse
import time
from uuid import UUID

from service.cli import local
from service.cli.table import print_json
from service.database.pool.pool import ConnectionPool
from service.ids import parse_id
from service.payments.audit import cli_actor
from service.payments.charge.model import Payment
from service.payments.movements.model import REFUND_PREFIX, Kind, Movement
from service.payments.movements.resolve import OperatorFinding
from service.payments.movements.store import MovementStore
from service.web.api.movement_schemas import present_refund

# A look-up holds the lease for a few seconds at most.
_AGAIN_S = 0.25


def is_about_movement(arguments: argparse.Namespace) -> bool:
    """Whether the command names a refund, or asks for the payment's capture or void."""
    return str(arguments.payment).startswith("ref_") or arguments.of != "payment"


def resolve_movement(
    pool: ConnectionPool, merchant_id: UUID, evidence: str, arguments: argparse.Namespace
) -> None:
    """Record an operator's finding; waits a moment for a call in flight, which has precedence."""
    # These commands never claim or lease a movement.
    store = MovementStore(pool, lease_s=0.0)
    actor, patience = cli_actor(), local.soon()
    finding = OperatorFinding(arguments.outcome, evidence, f"cli:{actor.name}")
    while True:
        movement, payment = _find(store, merchant_id, arguments)
        resolved = store.resolve(movement, finding, local.soon(), actor=actor)
        is_under_way = movement.leased or payment.leased
        if resolved is not None or not is_under_way or patience.expired:
            break
        time.sleep(_AGAIN_S)
    kind = movement.kind.value
    if resolved is None and is_under_way:
        local.fail(f"A call to the provider about this {kind} is in flight: try again soon.")
    if resolved is None:
        local.fail(f"Only a {kind} in doubt can be resolved: it is {movement.status.value}.")
    _print(*resolved, arguments)


def _find(
    store: MovementStore, merchant_id: UUID, arguments: argparse.Namespace
) -> tuple[Movement, Payment]:
    found = None
    if arguments.of == "payment":
        movement_id = parse_id(arguments.payment, REFUND_PREFIX)
        found = store.get(merchant_id, movement_id, local.soon()) if movement_id else None
        if found is not None and found[0].kind is not Kind.REFUND:
            found = None
    elif payment_id := parse_id(arguments.payment, "pay_"):
        found = store.get_end(merchant_id, payment_id, Kind(arguments.of), local.soon())
    if found is None:
        what = "refund" if arguments.of == "payment" else f"{arguments.of} of that payment"
        local.fail(f"There is no such {what} of this merchant.")
    return found


def _print(movement: Movement, payment: Payment, arguments: argparse.Namespace) -> None:
    if arguments.json and movement.kind is Kind.REFUND:
        print_json(present_refund(movement, payment))
    elif arguments.json:
        print_json({"id": movement.id, "status": movement.status.value, "payment": payment.id})
    else:
        print(f"The {movement.kind.value} is {movement.status.value}, for good.")
