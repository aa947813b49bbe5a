"""Stripe's notion of minor units beside ISO 4217's."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from iso4217 import Currency

from service.providers.amounts import NotRepresentable
from service.providers.stripe.currencies import STRIPE_AMOUNTS

EXPONENTS = {one.code.lower(): one.exponent for one in Currency}
UNITS = STRIPE_AMOUNTS.units or {}


@pytest.mark.parametrize(
    ("currency", "ours", "stripes"),
    [
        ("usd", 2599, 2599),
        ("jpy", 2599, 2599),
        ("isk", 500, 50_000),
        ("ugx", 5, 500),
        ("mga", 50_000, 500),
        ("kwd", 5120, 5120),
        ("huf", 17_550, 17_550),
    ],
)
def test_amounts_are_converted_both_ways(currency, ours, stripes):
    assert STRIPE_AMOUNTS.to_provider(ours, currency) == stripes
    assert STRIPE_AMOUNTS.from_provider(stripes, currency) == ours


@pytest.mark.parametrize(("currency", "ours"), [("kwd", 5124), ("mga", 50_050), ("xdr", 100)])
def test_what_stripe_cannot_say_is_not_sent(currency, ours):
    with pytest.raises(NotRepresentable):
        STRIPE_AMOUNTS.to_provider(ours, currency)


def test_a_fraction_of_our_minor_unit_has_no_amount():
    assert STRIPE_AMOUNTS.from_provider(50_050, "isk") is None


@pytest.mark.parametrize(
    ("currency", "amount", "field", "hint"),
    [
        ("kwd", 5124, "amount", "5120 or 5130"),
        ("mga", 50, "amount", "at least 100"),
        ("usd", 49, "amount", "at least 50"),
        ("huf", 17_499, "amount", "at least 17500"),
        ("usd", 100_000_000, "amount", "at most 99999999"),
        ("isk", 1_000_000, "amount", "at most 999999"),
        ("iqd", 10_000, "currency", "not taken"),
    ],
)
def test_a_refusal_says_what_would_be_accepted(currency, amount, field, hint):
    refused = STRIPE_AMOUNTS.refusal(amount, currency)

    assert refused is not None
    assert refused.field == field
    assert hint in refused.reason


@pytest.mark.parametrize(
    ("currency", "amount"),
    [("usd", 50), ("usd", 99_999_999), ("idr", 999_999_999_999), ("jpy", 50), ("isk", 999_999)],
)
def test_the_bounds_themselves_are_accepted(currency, amount):
    assert STRIPE_AMOUNTS.refusal(amount, currency) is None


def test_every_currency_is_one_of_iso_4217():
    assert {code for code in UNITS if EXPONENTS.get(code) is None} == set()


def test_only_known_exceptions_differ_from_iso_4217():
    odd = {code for code, units in UNITS.items() if (units.times, units.divided_by) != (1, 1)}

    assert odd == {"isk", "ugx", "mga"}
    assert {code for code in UNITS if EXPONENTS[code] == 3} == {
        code for code, units in UNITS.items() if units.step == 10
    }


@given(st.sampled_from(sorted(UNITS)), st.integers(1, 10**12 - 1))
def test_what_is_accepted_survives_the_way_there_and_back(currency, amount):
    if STRIPE_AMOUNTS.part_refusal(amount, currency) is None:
        said = STRIPE_AMOUNTS.to_provider(amount, currency)
        assert STRIPE_AMOUNTS.from_provider(said, currency) == amount
    else:
        assert currency in STRIPE_AMOUNTS.currencies_without(amount)
