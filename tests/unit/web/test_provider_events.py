"""Events of providers as the inbox reads them: an odd value elsewhere hides no hint."""

from __future__ import annotations

import pytest

from service.web.api.webhooks import read_event

EVENT = (
    b'{"id": "evt_1", "type": "charge.refunded", "data": {"object":'
    b' {"id": "ch_1", "payment_intent": "pi_1", "description": %s}}}'
)


@pytest.mark.parametrize(
    "value",
    [
        *(b'"x"', b'"x\\ud83d"', b'"\\udc00\\ud800"', b'"x\xed\xa0\xbd"', b'"\\u0000"'),
        *(b"9" * 6000, b"1e999", b"NaN", b"-Infinity", b"[" * 250 + b"]" * 250),
    ],
    ids=range(10),
)
def test_odd_value_elsewhere_hides_no_hint(value: bytes) -> None:
    event = read_event(EVENT % value)

    assert event is not None
    assert (event["event_id"], event["provider_ref"]) == ("evt_1", "pi_1")


def test_mark_of_the_byte_order_hides_no_hint() -> None:
    assert read_event(b"\xef\xbb\xbf" + EVENT % b'"x"') is not None


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"7", b"[" * 100_000, b"\xff", b"null"])
def test_what_is_no_event_hints_at_nothing(body: bytes) -> None:
    assert read_event(body) is None
