"""Pages of the provider's lists that hold odd objects, or do not end."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from service.errors import ProviderUnavailable
from service.providers.base import OutcomeKind
from service.providers.http.transport import ANSWER_BYTES_MAX
from service.providers.later import CursorLost, Feed, FeedMissing, Page, PageUnreadable, Slice
from service.resilience.deadline import Deadline
from tests.contract.test_stripe_lies import CHARGE_UNSENT, INTENT, books, said, stripe_that
from tests.support.processes.fault_server import always

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


def hour(after: str | None = None) -> Slice:
    now = datetime.now(UTC)
    return Slice(now - timedelta(hours=1), now, after)


def page_of(feed: Feed, *objects: Any, has_more: Any = False) -> Page:
    document = {"data": list(objects), "has_more": has_more}
    with stripe_that(books(lambda _: document)) as provider:
        return provider.page(feed, hour(), Deadline.after(60))


@pytest.mark.parametrize(
    ("feed", "sane", "odd", "unreadable"),
    [
        (Feed.CHARGES, CHARGE, {"amount": None}, 0),
        (Feed.CHARGES, CHARGE, {"created": "then"}, 0),
        (Feed.REFUNDS, REFUND, {"status": "new_word"}, 1),
        (Feed.REFUNDS, REFUND, {"created": 10**30}, 1),
        (Feed.DISPUTES, DISPUTE, {"amount": 0}, 1),
        (Feed.EVENTS, EVENT, {"type": 7}, 1),
    ],
)
def test_one_odd_object_does_not_hold_up_a_list(feed, sane, odd, unreadable):
    page = page_of(feed, sane | odd, sane)

    assert (len(page.items), len(page.unreadable)) == (1, unreadable)


DIGEST = "a" * 64


@pytest.mark.parametrize(
    ("feed", "odd"),
    [(Feed.CHARGES, CHARGE | {"amount": None}), (Feed.REFUNDS, REFUND | {"status": "new_word"})],
)
def test_an_unreadable_object_of_ours_is_told_beside_the_rest(feed, odd):
    page = page_of(feed, odd | {"metadata": OURS | {"key_digest": DIGEST}}, {**odd, "id": "x_2"})

    first = page.unreadable[0]
    assert (first.feed, first.provider_ref, first.payment_id) == (feed, odd["id"], "pay_1")
    assert (first.merchant_id, first.key_digest) == ("merchant-1", DIGEST)
    assert first.reason


@pytest.mark.parametrize(
    "odd",
    [
        CHARGE | {"amount": None, "metadata": None},
        CHARGE | {"amount": None, "metadata": [OURS]},
        CHARGE | {"id": None, "metadata": OURS},
        None,
        7,
        [],
    ],
)
def test_what_could_be_a_charge_of_ours_is_not_passed_over(odd):
    page = page_of(Feed.CHARGES, odd, CHARGE)

    assert [one.provider_ref for one in page.items] == ["pi_1"]
    assert len(page.unreadable) == 1
    assert page.unreadable[0].mark == page_of(Feed.CHARGES, odd).unreadable[0].mark


def test_a_page_is_read_on_after_its_last_readable_id():
    page = page_of(Feed.CHARGES, CHARGE, CHARGE | {"id": None}, None, has_more=True)

    assert page.after == "pi_1"


@pytest.mark.parametrize("body", [b"<html>", b"[]", b'{"data": 7}', b"{}", b'"', b'{"data":[]'])
def test_a_page_of_garbage_is_told_from_an_outage(body):
    with pytest.raises(PageUnreadable), stripe_that(always(said(200, body))) as provider:
        provider.page(Feed.CHARGES, hour(), Deadline.after(5))


@pytest.mark.parametrize("has_more", ["true", 1, None, {}])
def test_a_list_that_does_not_say_whether_it_ends_is_not_ended(has_more):
    with pytest.raises(PageUnreadable):
        page_of(Feed.CHARGES, CHARGE, has_more=has_more)


def test_an_object_larger_than_we_take_is_an_unreadable_page():
    large = {"data": [CHARGE | {"description": "x" * (2 * ANSWER_BYTES_MAX)}], "has_more": False}
    with pytest.raises(PageUnreadable), stripe_that(books(lambda _: large)) as provider:
        provider.page(Feed.CHARGES, hour(), Deadline.after(10))


@pytest.mark.parametrize("status", [400, 404])
@pytest.mark.parametrize("feed", list(Feed))
def test_forgotten_position_is_not_a_missing_list(feed, status):
    refusal = said(status, {"error": {"code": "resource_missing", "param": "starting_after"}})
    with pytest.raises(CursorLost), stripe_that(always(refusal)) as provider:
        provider.page(feed, hour(after="pi_gone"), Deadline.after(5))


def test_the_list_of_charges_is_never_missing():
    with pytest.raises(ProviderUnavailable), stripe_that(always(said(404, {}))) as provider:
        provider.page(Feed.CHARGES, hour(), Deadline.after(5))
    with pytest.raises(FeedMissing), stripe_that(always(said(404, {}))) as provider:
        provider.page(Feed.EVENTS, hour(), Deadline.after(5))


@pytest.mark.parametrize("status", [429, 503])
def test_a_provider_that_asks_for_a_pause_is_given_it(status):
    slow_down = said(status, {"error": {}}, more="Retry-After: 77\r\n")
    with pytest.raises(ProviderUnavailable) as caught, stripe_that(always(slow_down)) as provider:
        provider.page(Feed.CHARGES, hour(), Deadline.after(5))

    assert caught.value.retry_after_s == 77.0


@pytest.mark.parametrize(
    ("feed", "odd", "well"),
    [
        (Feed.CHARGES, CHARGE | {"amount": None}, CHARGE),
        (Feed.REFUNDS, REFUND | {"status": "new_word"}, REFUND),
        (Feed.DISPUTES, DISPUTE | {"amount": 0}, DISPUTE),
        (Feed.EVENTS, EVENT | {"type": 7}, EVENT),
    ],
)
def test_an_object_is_read_again_by_itself(feed, odd, well):
    with pytest.raises(PageUnreadable), stripe_that(always(said(200, odd))) as provider:
        provider.read_again(feed, odd["id"], Deadline.after(5))
    with stripe_that(always(said(200, well))) as provider:
        assert len(provider.read_again(feed, well["id"], Deadline.after(5))) == 1
    with pytest.raises(ProviderUnavailable), stripe_that(always(said(404, {}))) as provider:
        provider.read_again(feed, odd["id"], Deadline.after(5))


@pytest.mark.parametrize("odd", [{"amount": None}, {"created": "then"}, {"id": None}])
def test_an_odd_charge_of_others_leaves_look_ups_true(odd):
    foreign = INTENT | {"id": "pi_9", "metadata": {"shop": "1"}} | odd
    with stripe_that(books(lambda _: {"data": [foreign], "has_more": False})) as provider:
        absent = provider.look_up(CHARGE_UNSENT, Deadline.after(5))
    with stripe_that(
        books(lambda _: {"data": [foreign | {"metadata": None}], "has_more": False})
    ) as provider:
        doubtful = provider.look_up(CHARGE_UNSENT, Deadline.after(5))

    assert absent.kind is OutcomeKind.NOT_EXECUTED
    assert doubtful.kind is OutcomeKind.UNKNOWN


@pytest.mark.parametrize("feed", list(Feed))
def test_an_empty_page_that_has_more_is_no_end(feed):
    with pytest.raises(ProviderUnavailable):
        page_of(feed, has_more=True)


def test_events_of_unknown_types_are_passed_over():
    unknown = {"id": "evt_2", "type": "charge.reincarnated", "data": {"object": {"id": "ch_1"}}}

    assert len(page_of(Feed.EVENTS, unknown, EVENT).items) == 1
