"""Refunds: never more than the captured amount."""

from __future__ import annotations

from time import time

from service.lab.sandbox import cards, currencies, form
from service.lab.sandbox.books import BooksPage, Object, new_id
from service.lab.sandbox.errors import invalid
from service.lab.sandbox.form import Form
from service.lab.sandbox.objects import LIST_CHECKS, expanded, listing, load

CREATE_CHECKS = {
    "payment_intent": form.text,
    "charge": form.text,
    "amount": form.amount,
    "reason": form.one_of("duplicate", "fraudulent", "requested_by_customer"),
    "metadata": form.metadata,
    "expand": form.strings,
}
RETRIEVE_CHECKS = {"expand": form.strings}
LIST_CHARGES_CHECKS = LIST_CHECKS | {"payment_intent": form.text, "customer": form.text}
LIST_REFUNDS_CHECKS = LIST_CHECKS | {"payment_intent": form.text, "charge": form.text}


def create(page: BooksPage, given: Form, _path_id: str) -> Object:
    """Refund the given amount, or the whole rest."""
    charge = _charge_of(page, given)
    left = charge["amount_captured"] - charge["amount_refunded"]
    if left == 0:
        raise invalid(
            f"Charge {charge['id']} has already been refunded.", code="charge_already_refunded"
        )
    amount = given.get("amount", left)
    currencies.check_part(amount, charge["currency"], param="amount")
    if amount > left:
        raise invalid(
            f"Refund amount ({amount}) is greater than unrefunded amount on charge ({left})",
            param="amount",
        )
    is_pending = cards.find(charge["payment_method"]).refunds_wait
    refund = {
        "id": new_id("re"),
        "object": "refund",
        "amount": amount,
        "charge": charge["id"],
        "created": int(time()),
        "currency": charge["currency"],
        "failure_reason": None,
        "metadata": given.get("metadata", {}),
        "payment_intent": charge["payment_intent"],
        "reason": given.get("reason"),
        "status": "pending" if is_pending else "succeeded",
    }
    page.add(refund)
    _note_refunded(page, charge, amount)
    page.announce("refund.created", refund)
    page.announce("charge.refunded", charge)
    if not is_pending:
        page.move("refund", load(page, "payment_intent", charge["payment_intent"]), amount)
    return expanded(page, refund, given)


def settle(page: BooksPage, refund_id: str, *, is_paid_out: bool) -> Object:
    """The bank's result for a pending refund: paid out, or returned to us."""
    refund = load(page, "refund", refund_id)
    if refund["status"] != "pending":
        raise invalid(f"Refund {refund_id} is not pending.")
    if is_paid_out:
        refund["status"] = "succeeded"
        intent = load(page, "payment_intent", refund["payment_intent"])
        page.move("refund", intent, refund["amount"])
    else:
        refund |= {"status": "failed", "failure_reason": "declined"}
        _note_refunded(page, load(page, "charge", refund["charge"]), -refund["amount"])
    page.update(refund)
    page.announce("refund.updated", refund)
    if not is_paid_out:
        page.announce("refund.failed", refund)
    return refund


def fail(page: BooksPage, refund_id: str) -> Object:
    """The bank returns a refund that had succeeded: closed account, lost card."""
    refund = load(page, "refund", refund_id)
    if refund["status"] != "succeeded":
        raise invalid(f"Refund {refund_id} has not succeeded.")
    refund |= {"status": "failed", "failure_reason": "lost_or_stolen_card"}
    page.update(refund)
    _note_refunded(page, load(page, "charge", refund["charge"]), -refund["amount"])
    intent = load(page, "payment_intent", refund["payment_intent"])
    page.move("refund_failed", intent, refund["amount"])
    for event_type in ("refund.updated", "charge.refund.updated", "refund.failed"):
        page.announce(event_type, refund)
    return refund


def retrieve(page: BooksPage, given: Form, refund_id: str) -> Object:
    return expanded(page, load(page, "refund", refund_id), given)


def list_refunds(page: BooksPage, given: Form, _path_id: str) -> Object:
    return listing(page, "refund", given)


def list_charges(page: BooksPage, given: Form, _path_id: str) -> Object:
    return listing(page, "charge", given)


def retrieve_charge(page: BooksPage, given: Form, charge_id: str) -> Object:
    return expanded(page, load(page, "charge", charge_id), given)


def _charge_of(page: BooksPage, given: Form) -> Object:
    if given.get("charge"):
        charge = load(page, "charge", given["charge"], param="charge")
    elif given.get("payment_intent"):
        intent_id = given["payment_intent"]
        intent = load(page, "payment_intent", intent_id, param="payment_intent")
        charge = load(page, "charge", intent["latest_charge"]) if intent["latest_charge"] else {}
    else:
        raise invalid(
            "One of the following params should be provided for this request:"
            " payment_intent or charge.",
            code="parameter_missing",
        )
    if not charge.get("captured"):
        named = given.get("payment_intent") or given["charge"]
        raise invalid(f"{named} does not have a successful charge to refund.")
    return charge


def _note_refunded(page: BooksPage, charge: Object, amount: int) -> None:
    refunded = charge["amount_refunded"] + amount
    charge |= {
        "amount_refunded": refunded,
        "refunded": refunded == charge["amount_captured"],
    }
    page.update(charge)
