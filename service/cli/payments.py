"""Look at payments, and settle the ones in doubt.

reconcile asks the provider now; resolve records an operator's finding with its evidence,
permanently. The payment's timeline shows both, with the actor.

example:
  python -m service payments list --status needs_review
  python -m service payments show pay_019d..
  python -m service payments resolve pay_019d.. --outcome succeeded --evidence "pi_1 in Stripe"
  python -m service payments resolve ref_019d.. --outcome declined --evidence "re_1 in Stripe"
  python -m service payments resolve pay_019d.. --of capture --outcome succeeded --evidence "..."
"""

from __future__ import annotations

import argparse
import time
from typing import Any, get_args
from uuid import UUID

from service.cli import local, movements
from service.cli.table import print_fields, print_json, print_rows
from service.ids import parse_id
from service.payments.audit import cli_actor
from service.payments.charge.model import Payment, Status
from service.payments.charge.store import PaymentStore
from service.payments.settling.late_store import LateStore
from service.web.api.schemas import PaymentStatus, present, shown_status
from service.web.api.timeline_schemas import present_event

_EVIDENCE_LENGTH_MIN, _EVIDENCE_LENGTH_MAX = 10, 2000
# A look-up holds the payment's lease for a few seconds at most.
_AGAIN_S = 0.25


def add_arguments(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(dest="verb", required=True)
    listed = verbs.add_parser("list", help="the newest payments first")
    listed.add_argument("--status", help="an API status, like unknown or needs_review")
    listed.add_argument("--reference", help="the merchant's own reference")
    listed.add_argument("--limit", type=int, default=20, choices=range(1, 1001), metavar="N")
    shown = verbs.add_parser("show", help="one payment with its timeline")
    looked = verbs.add_parser("reconcile", help="ask the provider now")
    resolved = verbs.add_parser("resolve", help="record the outcome of what is in doubt")
    resolved.add_argument(
        "--of",
        choices=("payment", "capture", "void"),
        default="payment",
        help="what of the payment is meant; a refund is named by its own id",
    )
    resolved.add_argument(
        "--outcome", required=True, choices=("succeeded", "declined", "not_executed")
    )
    resolved.add_argument(
        "--evidence", required=True, help="where it can be checked: a page, a statement, a ticket"
    )
    for verb in (shown, looked):
        verb.add_argument("payment", help="its id: pay_ and 32 digits")
    resolved.add_argument("payment", help="its id: pay_ and 32 digits, or ref_ for a refund")
    for verb in (listed, shown, looked, resolved):
        local.add_merchant(verb)
        local.add_json(verb)


def run(arguments: argparse.Namespace) -> int:
    with local.database() as pool:
        # These commands never lease or queue a payment.
        store = PaymentStore(pool, lease_s=0.0, queue_expires_s=0.0)
        late = LateStore(pool, lease_s=0.0)
        if arguments.verb == "resolve" and movements.is_about_movement(arguments):
            merchant_id, evidence = local.merchant_of(arguments), _evidence(arguments)
            movements.resolve_movement(pool, merchant_id, evidence, arguments)
            return 0
        verb = {"list": _list, "show": _show, "reconcile": _reconcile, "resolve": _resolve}
        verb[arguments.verb](store, late, local.merchant_of(arguments), arguments)
    return 0


def _list(
    store: PaymentStore, late: LateStore, merchant_id: UUID, arguments: argparse.Namespace
) -> None:
    if arguments.status is not None and arguments.status not in get_args(PaymentStatus):
        local.fail(f"There is no status {arguments.status!r}: {', '.join(get_args(PaymentStatus))}")
    statuses = [status for status in Status if shown_status(status) == arguments.status]
    found = store.list(
        merchant_id,
        local.soon(),
        statuses=statuses or None,
        reference=arguments.reference,
        limit=arguments.limit,
    )
    ids = [payment.payment_id for payment in found]
    disputes = late.disputes_of(merchant_id, ids, local.soon())
    payments = [present(payment, disputes.get(payment.payment_id, ())) for payment in found]
    if arguments.json:
        print_json(payments)
    else:
        columns = ("id", "status", "amount", "currency", "reference", "next_check_at", "created_at")
        print_rows(payments, columns)


def _show(
    store: PaymentStore, late: LateStore, merchant_id: UUID, arguments: argparse.Namespace
) -> None:
    payment = _find(store, merchant_id, arguments)
    timeline = store.timeline(merchant_id, payment.payment_id, local.soon())
    steps = [dict(present_event(event)) for event in timeline]
    document = present(payment, late.disputes_about(payment, local.soon()))
    if arguments.json:
        print_json({**document, "timeline": steps})
        return
    print_fields({name: value for name, value in document.items() if name != "links"})
    print()
    print_rows([step | step["detail"] for step in steps], _STEP_COLUMNS)


_STEP_COLUMNS = (
    *("created_at", "type", "op", "outcome", "stage", "error", "ms", "pool_wait_ms", "breaker"),
    *("reason", "by"),
)


def _reconcile(
    store: PaymentStore, late: LateStore, merchant_id: UUID, arguments: argparse.Namespace
) -> None:
    payment = _find(store, merchant_id, arguments)
    if payment.is_terminal or payment.status is Status.REQUIRES_CAPTURE:
        local.fail(f"There is nothing to find out: it is {payment.status.value}.")
    store.look_now(payment, local.soon(), actor=cli_actor())
    _tell(
        late, arguments, payment, "A reconciler looks at once; `payments show` tells what it finds."
    )


def _resolve(
    store: PaymentStore, late: LateStore, merchant_id: UUID, arguments: argparse.Namespace
) -> None:
    evidence = _evidence(arguments)
    actor, patience = cli_actor(), local.soon()
    while True:
        payment = _find(store, merchant_id, arguments)
        resolved = store.resolve(
            payment,
            Status(arguments.outcome),
            evidence,
            f"cli:{actor.name}",
            local.soon(),
            actor=actor,
        )
        # The answer to a call in flight takes precedence over an operator; the call has a deadline.
        if resolved is not None or not payment.leased or patience.expired:
            break
        time.sleep(_AGAIN_S)
    if resolved is None and payment.leased:
        local.fail("A call to the provider about this payment is in flight: try again soon.")
    if resolved is None:
        local.fail(f"Only a payment in doubt can be resolved: it is {payment.status.value}.")
    _tell(late, arguments, resolved, f"It is {resolved.status.value}, for good.")


def _evidence(arguments: argparse.Namespace) -> str:
    evidence = local.fit_text(
        str(arguments.evidence).strip(), "evidence", longest=_EVIDENCE_LENGTH_MAX
    )
    if len(evidence) < _EVIDENCE_LENGTH_MIN:
        local.fail("The evidence must name a source, in 10 characters at least.")
    return evidence


def _find(store: PaymentStore, merchant_id: UUID, arguments: argparse.Namespace) -> Payment:
    payment_id = parse_id(arguments.payment, "pay_")
    payment = store.get(merchant_id, payment_id, local.soon()) if payment_id else None
    if payment is None:
        local.fail("There is no such payment of this merchant.")
    return payment


def _tell(late: LateStore, arguments: argparse.Namespace, payment: Payment, message: str) -> None:
    document: dict[str, Any] = present(payment, late.disputes_about(payment, local.soon()))
    print_json(document) if arguments.json else print(message)
