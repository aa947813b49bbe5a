"""Disputes: the payer's bank withdraws the money until the dispute is decided."""

from __future__ import annotations

from time import time

from service.lab.sandbox import form
from service.lab.sandbox.books import BooksPage, Object, new_id
from service.lab.sandbox.errors import invalid
from service.lab.sandbox.form import Form
from service.lab.sandbox.objects import LIST_CHECKS, expanded, listing, load

RETRIEVE_CHECKS = {"expand": form.strings}
LIST_DISPUTES_CHECKS = LIST_CHECKS | {"payment_intent": form.text, "charge": form.text}

_OPEN = ("needs_response", "under_review")


def open_dispute(page: BooksPage, intent_id: str, *, amount: int | None, reason: str) -> Object:
    """The payer complains, and the bank withdraws the amount at once."""
    intent = load(page, "payment_intent", intent_id)
    charge = load(page, "charge", intent["latest_charge"]) if intent["latest_charge"] else {}
    if not charge.get("captured"):
        raise invalid(f"{intent_id} does not have a successful charge to dispute.")
    dispute = {
        "id": new_id("dp"),
        "object": "dispute",
        "amount": amount or charge["amount_captured"],
        "charge": charge["id"],
        "created": int(time()),
        "currency": charge["currency"],
        "evidence_details": {"due_by": int(time()) + 7 * 86400, "submission_count": 0},
        "is_charge_refundable": False,
        "livemode": False,
        "metadata": {},
        "payment_intent": intent_id,
        "reason": reason,
        "status": "needs_response",
    }
    page.add(dispute)
    charge["disputed"] = True
    page.update(charge)
    page.move("dispute", intent, dispute["amount"])
    page.announce("charge.dispute.created", dispute)
    page.announce("charge.dispute.funds_withdrawn", dispute)
    return dispute


def close(page: BooksPage, dispute_id: str, *, is_won: bool) -> Object:
    """The bank's decision; a won dispute returns the money."""
    dispute = load(page, "dispute", dispute_id)
    if dispute["status"] not in _OPEN:
        raise invalid(f"Dispute {dispute_id} is closed.")
    dispute["status"] = "won" if is_won else "lost"
    page.update(dispute)
    if is_won:
        intent = load(page, "payment_intent", dispute["payment_intent"])
        page.move("dispute_won", intent, dispute["amount"])
        page.announce("charge.dispute.funds_reinstated", dispute)
    page.announce("charge.dispute.closed", dispute)
    return dispute


def retrieve(page: BooksPage, given: Form, dispute_id: str) -> Object:
    return expanded(page, load(page, "dispute", dispute_id), given)


def list_disputes(page: BooksPage, given: Form, _path_id: str) -> Object:
    return listing(page, "dispute", given)
