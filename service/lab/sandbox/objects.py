"""Finds and lists objects, with Stripe's answers for missing ones."""

from __future__ import annotations

from service.lab.sandbox import form
from service.lab.sandbox.books import BooksPage, Object
from service.lab.sandbox.errors import invalid, missing
from service.lab.sandbox.form import Form

LIST_CHECKS = {
    "limit": form.page_size,
    "starting_after": form.text,
    "ending_before": form.text,
    "created": form.time_range,
}


def load(page: BooksPage, kind: str, object_id: str, *, param: str = "id") -> Object:
    """The object, or StripeError `resource_missing`."""
    found = page.find(kind, object_id)
    if found is None:
        raise missing(kind, object_id, param=param)
    return found


def listing(page: BooksPage, kind: str, given: Form) -> Object:
    """Stripe's list object, newest first."""
    for cursor in ("starting_after", "ending_before"):
        if given.get(cursor):
            load(page, kind, given[cursor], param=cursor)
    found, has_more = page.listed(kind, given)
    return {"object": "list", "url": f"/v1/{kind}s", "has_more": has_more, "data": found}


def expanded(page: BooksPage, item: Object, given: Form) -> Object:
    """The object with the full objects that `expand[]` names instead of their ids."""
    for name in given.get("expand", []):
        if name not in ("latest_charge", "charge", "payment_intent") or name not in item:
            raise invalid(f"This property cannot be expanded ({name}).", param="expand")
        kind = name.removeprefix("latest_")
        item = item | {name: page.find(kind, item[name]) if item[name] else None}
    return item
