"""A provider with false, malformed or endless answers: doubt stays doubt for all of them."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from service.errors import ProviderUnavailable
from service.providers.base import Charge, Outcome, OutcomeKind, Refund, Stage
from service.providers.http.transport import Transport
from service.providers.stripe.answers import MESSAGE_LENGTH_MAX, RETRY_AFTER_MAX_S
from service.providers.stripe.intents_adapter import StripeProvider
from service.resilience.deadline import Deadline
from service.resilience.watchdog import Watchdog
from tests.support.processes.fault_server import (
    Behaviour,
    Peer,
    always,
    answer,
    certificate,
    fault_server,
)

CHARGE = Charge(
    payment_id="pay_1",
    merchant_id="merchant-1",
    amount_minor=1,
    currency="usd",
    payment_method="pm_card_visa",
    provider_key="hf-1-1",
    provider_ref="pi_1",
    created_at=datetime.now(UTC),
)
CHARGE_UNSENT = replace(CHARGE, provider_ref=None)
INTENT: dict[str, Any] = {
    "id": "pi_1",
    "object": "payment_intent",
    "status": "succeeded",
    "amount": 1,
    "amount_received": 1,
    "amount_capturable": 0,
    "currency": "usd",
    "created": 1_700_000_000,
    "metadata": {"payment_id": "pay_1", "merchant_id": "merchant-1"},
}
UNPAID = INTENT | {"amount_received": 0}


@contextlib.contextmanager
def stripe_that(behave: Behaviour, flow: Any = "two_phase") -> Iterator[StripeProvider]:
    with fault_server(behave) as server:
        transport = Transport(
            base_url=server.url,
            ca_file=certificate(),
            connect_timeout_s=2.0,
            max_connections=2,
            watchdog=Watchdog(),
        )
        try:
            yield StripeProvider(transport, api_key="sk_test_lies", flow=flow)
        finally:
            transport.close()


def said(status: int, content: Any, **more: Any) -> bytes:
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    return answer(status, body, **more)


def confirmed(content: bytes, charge: Charge = CHARGE) -> Outcome:
    with stripe_that(always(content)) as provider:
        return provider.confirm(charge, Deadline.after(60))


def test_the_honest_answer_is_believed():
    assert confirmed(said(200, INTENT)).kind is OutcomeKind.SUCCEEDED


LIES: dict[str, dict[str, Any]] = {
    "another amount": {"amount": 2},
    "an amount with a point": {"amount": 1.0},
    "an amount in words": {"amount": "1"},
    "an amount that is true": {"amount": True},
    "another currency": {"currency": "eur"},
    "another payment": {"metadata": {"payment_id": "pay_2"}},
    "nobody's payment": {"metadata": None},
    "another reference": {"id": "pi_2"},
    "another object": {"object": "charge"},
    "more received than asked": {"amount_received": 2},
    "nothing received": {"amount_received": 0},
    "nothing reserved": {"status": "requires_capture"},
    "a status of its own": {"status": "probably"},
    "no status": {"status": None},
    "a status that is a list": {"status": ["succeeded"]},
    "no method, and none refused": {"status": "requires_payment_method"},
    "canceled and paid": {"status": "canceled"},
    "unconfirmed and paid": {"status": "requires_confirmation"},
    "processing and paid": {"status": "processing"},
    "paid before the payer acted": {"status": "requires_action", "next_action": {"type": "x"}},
    "refused and paid": {"status": "requires_payment_method", "last_payment_error": {"code": "x"}},
    "canceled and reserved": {"status": "canceled", "amount_received": 0, "amount_capturable": 1},
    "unconfirmed and reserved": {
        "status": "requires_confirmation",
        "amount_received": 0,
        "amount_capturable": 1,
    },
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_is_a_mismatch_and_a_mismatch_is_doubt(lie):
    outcome = confirmed(said(200, INTENT | LIES[lie]))

    assert (outcome.kind, outcome.error) == (OutcomeKind.UNKNOWN, "mismatch")
    assert outcome.provider_ref in (None, "pi_1")


@pytest.mark.parametrize(
    "reference", ["../../v1/refunds", "pi 1", "pi_1\r\nX: y", "", "p" * 101, 7]
)
def test_reference_that_could_leave_its_path_is_refused(reference):
    intent = INTENT | {"id": reference, "status": "requires_confirmation"}
    with stripe_that(always(said(200, intent))) as provider:
        outcome = provider.prepare(CHARGE_UNSENT, Deadline.after(60))

    assert (outcome.kind, outcome.provider_ref) == (OutcomeKind.UNKNOWN, None)


def test_a_capture_of_another_amount_than_asked_is_doubt():
    with stripe_that(always(said(200, INTENT | {"amount": 9, "amount_received": 9}))) as provider:
        outcome = provider.capture(replace(CHARGE, amount_minor=9), 5, "key", Deadline.after(60))

    assert (outcome.kind, outcome.error) == (OutcomeKind.UNKNOWN, "mismatch")


@pytest.mark.parametrize("status", ["succeeded", "requires_confirmation"])
def test_money_that_moved_while_preparing_is_doubt(status):
    with stripe_that(always(said(200, INTENT | {"status": status}))) as provider:
        outcome = provider.prepare(CHARGE_UNSENT, Deadline.after(60))

    assert (outcome.kind, outcome.error) == (OutcomeKind.UNKNOWN, "mismatch")


CARD_ERROR = {"type": "card_error", "code": "card_declined", "message": "No."}

UNREADABLE: dict[str, tuple[bytes, str]] = {
    "no JSON": (said(200, b"<html>ok</html>"), "garbage"),
    "nothing": (said(200, b""), "garbage"),
    "half a JSON": (said(200, b'{"id": "pi_1", "status": "succ'), "garbage"),
    "a list": (said(200, [INTENT]), "garbage"),
    "not UTF-8": (said(200, b'{"id": "\xff\xfe"}'), "garbage"),
    "a hundred thousand brackets": (said(200, b"[" * 100_000), "garbage"),
    "a number of 5000 digits": (said(200, b'{"amount": ' + b"9" * 5000 + b"}"), "mismatch"),
    "compressed": (said(200, b"\x1f\x8b\x08", more="Content-Encoding: gzip\r\n"), "garbage"),
    "too much": (said(200, INTENT | {"padding": "x" * 300_000}), "too_large"),
    "a redirect": (said(302, INTENT, more="Location: /v1/elsewhere\r\n"), "garbage"),
    "created": (said(201, INTENT), "garbage"),
    "a page that says declined": (said(402, b"<html>card_error</html>"), "http_4xx"),
    "declined for another reason": (said(402, {"error": {"type": "api_error"}}), "http_4xx"),
    "an error that is a word": (said(400, {"error": "bad"}), "http_4xx"),
    "not found": (said(404, {"error": {"type": "invalid_request_error"}}), "http_4xx"),
    "in flight": (said(409, {"error": {"type": "idempotency_error"}}), "http_409"),
    "an own failure": (said(500, INTENT), "http_5xx"),
    "a gateway's failure": (said(502, b"<html>"), "http_5xx"),
}


@pytest.mark.parametrize("case", UNREADABLE)
def test_an_answer_that_settles_nothing_is_doubt(case):
    content, error = UNREADABLE[case]

    outcome = confirmed(content)

    assert (outcome.kind, outcome.error) == (OutcomeKind.UNKNOWN, error)


def test_a_decline_of_somebody_elses_payment_is_doubt():
    error = CARD_ERROR | {"payment_intent": INTENT | {"id": "pi_2"}}

    outcome = confirmed(said(402, {"error": error}))

    assert (outcome.kind, outcome.error) == (OutcomeKind.UNKNOWN, "mismatch")


@pytest.mark.parametrize("status", ["succeeded", "requires_capture", "processing"])
def test_decline_with_a_charge_that_moved_is_doubt(status):
    moved = INTENT | {"status": status, "amount_capturable": 1}

    outcome = confirmed(said(402, {"error": CARD_ERROR | {"payment_intent": moved}}))

    assert (outcome.kind, outcome.error) == (OutcomeKind.UNKNOWN, "mismatch")


@pytest.mark.parametrize(
    "content",
    [
        said(402, {"error": CARD_ERROR}),
        said(200, UNPAID | {"status": "requires_payment_method", "last_payment_error": CARD_ERROR}),
    ],
    ids=["402", "200"],
)
def test_cancel_answered_with_a_decline_released_nothing(content):
    with stripe_that(always(content)) as provider:
        outcome = provider.cancel(CHARGE, "key", Deadline.after(60))

    assert (outcome.kind, outcome.error) == (OutcomeKind.UNKNOWN, "mismatch")


@pytest.mark.parametrize(
    "text", ["4242 4242 4242 4242", "sk_live_51abcdefghijklmnop", "pi_1_secret_abcdef"]
)
def test_words_of_a_decline_hold_no_card_and_no_secret(text):
    decline = confirmed(said(402, {"error": CARD_ERROR | {"message": f"Bad: {text}."}})).decline

    assert decline is not None
    assert decline.message.startswith("Bad: ")
    assert text not in decline.message


def test_the_words_of_a_decline_are_short_and_harmless():
    error = CARD_ERROR | {
        "decline_code": "<script>",
        "message": "no\r\nlevel=info \x1b[31m" + "x" * 999,
    }

    decline = confirmed(said(402, {"error": error})).decline

    assert decline is not None
    assert decline.code == "unreadable"
    assert len(decline.message) <= MESSAGE_LENGTH_MAX
    assert decline.message.isprintable()


@pytest.mark.parametrize(
    ("asked", "taken"),
    [
        ("3", 3.0),
        ("99999999", RETRY_AFTER_MAX_S),
        ("Tue, 24 Nov 2026", None),
        ("-1", None),
        ("nan", None),
    ],
)
def test_a_wish_to_be_asked_later_is_bounded(asked, taken):
    outcome = confirmed(said(429, {}, more=f"Retry-After: {asked}\r\n"))

    assert (outcome.kind, outcome.stage) == (OutcomeKind.NOT_EXECUTED, Stage.ANSWERED)
    assert outcome.retry_after_s == taken


@pytest.mark.parametrize("status", [400, 401, 403, 404, 429, 500, 502])
def test_no_refused_look_up_proves_that_nothing_was_charged(status):
    refusal = said(status, {"error": {"type": "invalid_request_error", "code": "resource_missing"}})
    with stripe_that(always(refusal)) as provider:
        assert provider.look_up(CHARGE, Deadline.after(60)).kind is OutcomeKind.UNKNOWN
        assert provider.look_up(CHARGE_UNSENT, Deadline.after(60)).kind is OutcomeKind.UNKNOWN


# --- The books ----------------------------------------------------------------------------------


def books(page: Callable[[str], Any]) -> Behaviour:
    """Answer each request with the result of `page` for its request line."""

    def behave(peer: Peer) -> None:
        while request := peer.read_request():
            peer.send(said(200, page(request.split(b"\r\n")[0].decode())))

    return behave


def listed(behave: Behaviour) -> list[Any]:
    with stripe_that(behave) as provider:
        return list(provider.list_since(datetime.now(UTC), Deadline.after(60)))


ENDLESS = {"object": "list", "data": [INTENT], "has_more": True}


@pytest.mark.parametrize(
    "page",
    [
        ENDLESS,
        {"object": "list"},
        {"data": "none"},
        {"data": [1]},
        {"data": [INTENT | {"amount": None}]},
        {"data": [INTENT | {"created": "then"}]},
        {"error": {}},
    ],
)
def test_books_that_make_no_sense_are_not_read_as_whole(page):
    with pytest.raises(ProviderUnavailable):
        listed(books(lambda _: page))


def test_a_page_that_is_too_large_is_asked_for_in_smaller_pieces():
    def page(line: str) -> Any:
        size = int(re.findall(r"limit=(\d+)", line)[0])
        padding = {"padding": "x" * 30_000}
        return {"data": [INTENT | padding] * size, "has_more": False}

    assert len(listed(books(page))) == 1


def test_somebody_elses_charges_in_the_books_are_not_ours():
    stranger = INTENT | {"metadata": {"payment_id": 7}}

    found = listed(books(lambda _: {"data": [stranger], "has_more": False}))

    assert [charge.payment_id for charge in found] == [None]


def test_of_two_charges_the_one_that_moved_money_is_believed():
    refused = INTENT | {
        "id": "pi_2",
        "status": "requires_payment_method",
        "last_payment_error": CARD_ERROR,
    }
    page = {"data": [refused, INTENT], "has_more": False}

    with stripe_that(books(lambda _: page)) as provider:
        outcome = provider.look_up(CHARGE_UNSENT, Deadline.after(60))

    assert (outcome.kind, outcome.provider_ref) == (OutcomeKind.SUCCEEDED, "pi_1")


def test_a_lie_in_the_books_is_doubt_whatever_stands_beside_it():
    refused = INTENT | {
        "id": "pi_2",
        "status": "requires_payment_method",
        "last_payment_error": CARD_ERROR,
    }
    page = {"data": [INTENT | {"amount": 2}, refused], "has_more": False}

    with stripe_that(books(lambda _: page)) as provider:
        outcome = provider.look_up(CHARGE_UNSENT, Deadline.after(60))

    assert (outcome.kind, outcome.error) == (OutcomeKind.UNKNOWN, "mismatch")


# --- Refunds ------------------------------------------------------------------------------------

REFUND = Refund(
    refund_id="ref_1",
    payment_id="pay_1",
    provider_ref="pi_1",
    amount_minor=1,
    currency="usd",
    provider_key="hf-ref-1",
)
REFUNDED: dict[str, Any] = {
    "id": "re_1",
    "object": "refund",
    "status": "succeeded",
    "amount": 1,
    "currency": "usd",
    "payment_intent": "pi_1",
    "metadata": {"refund_id": "ref_1"},
}


@pytest.mark.parametrize(
    "lie",
    [
        {"amount": 2},
        {"currency": "eur"},
        {"payment_intent": "pi_2"},
        {"metadata": {}},
        {"status": "perhaps"},
        {"id": "../x"},
    ],
)
def test_a_lie_about_a_refund_is_doubt(lie):
    with stripe_that(always(said(200, REFUNDED | lie))) as provider:
        outcome = provider.refund(REFUND, Deadline.after(60))

    assert (outcome.kind, outcome.error) == (OutcomeKind.UNKNOWN, "mismatch")


def test_a_refund_that_failed_is_declined_with_the_reason():
    failed = REFUNDED | {"status": "failed", "failure_reason": "expired_or_canceled_card"}
    with stripe_that(always(said(200, failed))) as provider:
        outcome = provider.refund(REFUND, Deadline.after(60))

    assert outcome.kind is OutcomeKind.DECLINED
    assert outcome.decline is not None
    assert outcome.decline.code == "expired_or_canceled_card"


# --- Faults of the adapter ----------------------------------------------------------------------


def test_a_fault_of_the_adapter_itself_is_doubt_and_loud(caplog):
    class Broken(Transport):
        def exchange(self, *_: Any, **__: Any) -> Any:
            raise KeyError("a bug")

    transport = Broken(
        base_url="https://127.0.0.1:1",
        ca_file=certificate(),
        connect_timeout_s=1.0,
        max_connections=1,
        watchdog=Watchdog(),
    )
    provider = StripeProvider(transport, api_key="sk_test_lies", flow="two_phase")

    outcome = provider.confirm(CHARGE, Deadline.after(60))

    assert (outcome.kind, outcome.error) == (OutcomeKind.UNKNOWN, "internal")
    assert "KeyError" in caplog.text


# --- Unsendable requests, and refusals of the request -------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"metadata": {"merchant_id]z": "other"}},
        {"metadata": {"payment_id]z": "other"}},
        {"metadata": {"a[b]": "c"}},
        {"metadata": {"a": ""}},
        {"metadata": {"a": "\x00"}},
        {"metadata": {f"k{n}": "v" for n in range(49)}},
        {"customer": "cus\n1"},
        {"payment_method": "\ud800"},
        {"payment_method": ""},
        {"reference": "r" * 501},
        {"currency": "xxx"},
    ],
)
def test_a_form_that_means_something_else_is_not_sent(changes):
    with fault_server(always(said(200, INTENT))) as server:
        transport = Transport(
            base_url=server.url,
            ca_file=certificate(),
            connect_timeout_s=2.0,
            max_connections=2,
            watchdog=Watchdog(),
        )
        provider = StripeProvider(transport, api_key="sk_test_lies", flow="one_shot")
        charge = replace(CHARGE_UNSENT, **changes)
        confirmed, looked = (
            provider.confirm(charge, Deadline.after(60)),
            provider.look_up(charge, Deadline.after(60)),
        )
        transport.close()

    assert (confirmed.kind, confirmed.stage) == (OutcomeKind.DECLINED, Stage.NOT_SENT)
    # This does not end a payment that an older version has sent.
    assert looked.kind is OutcomeKind.UNKNOWN


@pytest.mark.parametrize(
    ("param", "field"),
    [("payment_method", "payment_method"), ("customer", "customer"), ("confirm", None)],
)
def test_an_invalid_request_is_no_declined_card(caplog, param, field):
    error = {"type": "invalid_request_error", "code": "resource_missing", "param": param}
    with stripe_that(always(said(400, {"error": error}))) as provider:
        outcome = provider.prepare(CHARGE_UNSENT, Deadline.after(60))

    assert outcome.decline is not None
    assert (outcome.decline.is_request, outcome.decline.field) == (True, field)
    # A refused parameter that is not the caller's field is our fault, and the operator is notified.
    assert ("provider.request_refused" in caplog.text) is (field is None)


def test_a_refused_refund_is_no_declined_card():
    error = {"type": "invalid_request_error", "code": "charge_already_refunded"}

    def behave(peer: Peer) -> None:
        while request := peer.read_request():
            page = said(200, {"data": [], "has_more": False})
            peer.send(said(400, {"error": error}) if request.startswith(b"POST") else page)

    with stripe_that(behave) as provider:
        outcome = provider.refund(REFUND, Deadline.after(60))

    assert outcome.decline is not None
    assert outcome.decline.is_request


# --- Answers are cleaned before they are stored -------------------------------------------------

DIRTY = {
    "NUL": ("u", "a\x00b"),
    "a lone surrogate": ("u", "a\ud800b"),
    "controls": ("u", "a\r\nlevel=info\x1b[31m"),
    "not a number": ("n", float("nan")),
    "infinity": ("n", float("inf")),
    "a huge integer": ("n", 10**300),
    "deep": ("d", json.loads('{"a":' * 200 + "1" + "}" * 200)),
    "a name with NUL": ("a\x00b", 1),
    "long": ("u", "x" * 200_000),
}


@pytest.mark.parametrize("case", DIRTY)
def test_what_the_payer_must_do_can_be_stored(case):
    name, content = DIRTY[case]
    action = {"type": "redirect_to_url", name: content}
    outcome = confirmed(said(200, UNPAID | {"status": "requires_action", "next_action": action}))

    assert outcome.kind is OutcomeKind.PENDING
    assert outcome.next_action is not None
    assert outcome.next_action["type"] == "redirect_to_url"
    stored = json.dumps(dict(outcome.next_action), allow_nan=False)
    assert len(stored) < 65_536
    assert not re.search(r"\\u00[01][0-9a-f]|\\ud[89a-f]", stored)


def test_a_number_beyond_floats_is_no_number():
    body = json.dumps(UNPAID | {"status": "requires_action"})[:-1]
    outcome = confirmed(said(200, (body + ', "next_action": {"n": 1e999}}').encode()))

    assert outcome.next_action == {"n": None}


def capture_refused(intent: dict[str, Any]) -> Outcome:
    """A capture that is refused as invalid, while the books show this intent."""
    error = {"type": "invalid_request_error", "param": "amount_to_capture"}

    def behave(peer: Peer) -> None:
        while request := peer.read_request():
            is_capture = request.startswith(b"POST")
            peer.send(said(400, {"error": error}) if is_capture else said(200, intent))

    with stripe_that(behave) as provider:
        return provider.capture(CHARGE, 1, "key-capture", Deadline.after(60))


def test_a_refused_capture_is_final_while_the_money_is_reserved():
    reserved = {"status": "requires_capture", "amount_received": 0, "amount_capturable": 1}
    outcome = capture_refused(INTENT | reserved)

    assert outcome.kind is OutcomeKind.DECLINED
    assert outcome.decline is not None
    assert (outcome.decline.is_request, outcome.decline.field) == (True, "amount")


def test_a_refused_capture_tells_what_became_of_the_money():
    captured, released = capture_refused(INTENT), capture_refused(UNPAID | {"status": "canceled"})

    assert (captured.kind, captured.amount_received) == (OutcomeKind.SUCCEEDED, 1)
    assert (released.kind, released.error) == (OutcomeKind.NOT_EXECUTED, "canceled")
    assert capture_refused({"status": "garbage"}).kind is OutcomeKind.UNKNOWN
