"""Pages of the provider's lists that hold odd objects, or do not end."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from service.errors import ProviderUnavailable
from service.observability.metrics import catalogue as metrics
from service.providers.later import Feed, Page, Slice
from service.resilience.deadline import Deadline
from tests.contract.test_stripe_lies import INTENT, books, stripe_that

OURS = {"payment_id": "pay_1", "merchant_id": "merchant-1"}
CHARGE = INTENT | {"metadata": {}}
REFUND = {
    "id": "re_1",
    "amount": 1,
    "currency": "usd",
    "status": "succeeded",
    "created": 1,
    "payment_intent": "pi_1",
}
DISPUTE = {
    "id": "dp_1",
    "amount": 1,
    "currency": "usd",
    "status": "won",
    "reason": "x",
    "created": 1,
}
EVENT = {"id": "evt_1", "type": "charge.refunded", "data": {"object": {"id": "ch_1"}}}


def page_of(feed: Feed, *objects: Any, has_more: bool = False) -> Page:
    now = datetime.now(UTC)
    document = {"data": list(objects), "has_more": has_more}
    with stripe_that(books(lambda _: document)) as provider:
        return provider.page(feed, Slice(now - timedelta(hours=1), now), Deadline.after(5))


@pytest.mark.parametrize(
    ("feed", "sane", "odd", "parked"),
    [
        (Feed.CHARGES, CHARGE, {"amount": None}, 0),
        (Feed.CHARGES, CHARGE, {"created": "then"}, 0),
        (Feed.REFUNDS, REFUND, {"status": "new_word"}, 1),
        (Feed.REFUNDS, REFUND, {"created": 10**30}, 1),
        (Feed.DISPUTES, DISPUTE, {"amount": 0}, 1),
        (Feed.EVENTS, EVENT, {"type": 7}, 1),
    ],
)
def test_one_odd_object_does_not_hold_up_a_list(feed, sane, odd, parked):
    before = metrics.rows_parked_total._value.get()

    page = page_of(feed, sane | odd, sane)

    assert len(page.items) == 1
    assert metrics.rows_parked_total._value.get() - before == parked


@pytest.mark.parametrize(
    ("feed", "odd"),
    [(Feed.CHARGES, CHARGE | {"amount": None}), (Feed.REFUNDS, REFUND | {"status": "new_word"})],
)
def test_an_odd_object_of_ours_is_not_passed_over(feed, odd):
    with pytest.raises(ProviderUnavailable):
        page_of(feed, odd | {"metadata": OURS})


@pytest.mark.parametrize("feed", list(Feed))
def test_an_empty_page_that_has_more_is_no_end(feed):
    with pytest.raises(ProviderUnavailable):
        page_of(feed, has_more=True)


def test_events_of_unknown_types_are_passed_over():
    unknown = {"id": "evt_2", "type": "charge.reincarnated", "data": {"object": {"id": "ch_1"}}}

    assert len(page_of(Feed.EVENTS, unknown, EVENT).items) == 1
