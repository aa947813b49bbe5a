"""What looks like a card number, and what must not."""

from __future__ import annotations

from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.web.card_numbers import holds_card_number


@pytest.mark.parametrize(
    "text",
    [
        "4242424242424242",
        "my card is 4242424242424242.",
        "4242 4242 4242 4242",
        "4242-4242-4242-4242",
        "4242.4242.4242.4242",
        "4242424242424242 12/30 123",
        "pan4242424242424242exp1230",
        "378282246310005",
        "3782 822463 10005",
        "30569309025904",
        "6011111111111117",
        "2223003122003222",
        "6304000000000000000",
        "４２４２４２４２４２４２４２４２",
    ],
)
def test_a_card_number_is_seen_however_it_is_written(text: str) -> None:
    assert holds_card_number(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "order-123",
        "4242424242424241",
        "424242424242",
        "1700000000000000000",
        "2026-11-24T04:32:51.123456Z",
        "pm_card_visa",
        "pay_01a20bc8c9c3762abd2bab57f8e90276",
        "+49 30 901820 0",
    ],
)
def test_other_numbers_pass(text: str) -> None:
    assert not holds_card_number(text)


def test_random_identifiers_are_never_taken_for_cards() -> None:
    identifiers = [text for _ in range(5000) for text in (str(uuid4()), uuid4().hex)]

    assert [text for text in identifiers if holds_card_number(text)] == []


@given(
    st.text("0123456789", min_size=12, max_size=17),
    st.sampled_from("23456"),
    st.sampled_from(["", " ", "-"]),
    st.sampled_from([("", ""), ("ref ", " end"), ("#", "/"), ("(", ")")]),
)
def test_every_number_that_passes_luhn_is_seen(
    digits: str, first: str, separator: str, around: tuple[str, str]
) -> None:
    number = first + digits
    checked = next(number + last for last in "0123456789" if luhn_sum(number + last) % 10 == 0)
    grouped = separator.join(checked[at : at + 4] for at in range(0, len(checked), 4))

    assert holds_card_number(around[0] + grouped + around[1])


def luhn_sum(digits: str) -> int:
    """ISO/IEC 7812-1, annex B, written another way than the code under test."""
    doubled = {"0": 0, "1": 2, "2": 4, "3": 6, "4": 8, "5": 1, "6": 3, "7": 5, "8": 7, "9": 9}
    odd, even = digits[-1::-2], digits[-2::-2]
    return sum(map(int, odd)) + sum(doubled[digit] for digit in even)
