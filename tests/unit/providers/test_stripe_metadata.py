"""Our entries in the provider's metadata, and how they identify our objects."""

from __future__ import annotations

from service.providers.base import Charge
from service.providers.stripe.answers import is_of
from service.providers.stripe.api import metadata_form
from service.providers.stripe.form import METADATA_ENTRIES_MAX


def charge(**more: object) -> Charge:
    fields: dict[str, object] = {
        "payment_id": "pay_1",
        "merchant_id": "merchant-1",
        "amount_minor": 1,
        "currency": "usd",
        "payment_method": "pm_card_visa",
        "provider_key": "hf-1-1",
        "reference": "order-1",
        "key_digest": "ab" * 32,
    }
    return Charge(**{**fields, **more})  # type: ignore[arg-type]


def test_our_entries_lead_back_to_the_row_and_to_the_key():
    assert metadata_form(charge()) == {
        "metadata[key_digest]": "ab" * 32,
        "metadata[merchant_id]": "merchant-1",
        "metadata[payment_id]": "pay_1",
        "metadata[reference]": "order-1",
    }


def test_47_entries_of_the_caller_exclude_the_reference():
    form = metadata_form(charge(metadata={f"key{n}": "x" for n in range(47)}))

    assert len(form) == METADATA_ENTRIES_MAX
    assert "metadata[reference]" not in form


def test_the_caller_cannot_overwrite_our_entries():
    form = metadata_form(charge(metadata={"payment_id": "x", "key_digest": "y"}))

    assert form["metadata[payment_id]"] == "pay_1"
    assert form["metadata[key_digest]"] == "ab" * 32


def test_an_object_under_our_digest_is_ours_whatever_its_payment():
    found = {"metadata": {"payment_id": "pay_lost", "key_digest": "ab" * 32}}

    assert is_of(found, charge())
    assert not is_of(found, charge(key_digest="cd" * 32))
    assert not is_of({"metadata": {"payment_id": "pay_lost"}}, charge(key_digest=None))
