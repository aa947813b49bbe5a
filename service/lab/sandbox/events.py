"""The events feed: newest first, for 30 days, as Stripe lists it."""

from __future__ import annotations

from service.lab.sandbox import form
from service.lab.sandbox.books import BooksPage, Object
from service.lab.sandbox.errors import invalid
from service.lab.sandbox.form import Form
from service.lab.sandbox.objects import LIST_CHECKS, listing, load

# Stripe's own limit.
TYPES_MAX = 20

RETRIEVE_CHECKS = {"expand": form.strings}
LIST_EVENTS_CHECKS = LIST_CHECKS | {"type": form.text, "types": form.strings}


def retrieve(page: BooksPage, _given: Form, event_id: str) -> Object:
    return load(page, "event", event_id)


def list_events(page: BooksPage, given: Form, _path_id: str) -> Object:
    """All events, or those of one `type`, or of up to 20 `types`."""
    if given.get("type") and given.get("types"):
        raise invalid("You may only specify one of these parameters: type, types.", param="types")
    if len(given.get("types", [])) > TYPES_MAX:
        raise invalid(f"types can hold at most {TYPES_MAX} values.", param="types")
    return listing(page, "event", given)
