"""Texts that hold a card number, ordinary references that must pass, and the time it takes."""

from __future__ import annotations

from itertools import accumulate, pairwise
from time import thread_time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.observability.card_numbers import card_number_spans, holds_card_number
from service.observability.redaction import clean, clean_text
from tests.support.ordinary_references import KINDS, LONG_KINDS, references

VISA = "4242424242424242"
# (prefix, length): ISO/IEC 7812 ranges, written apart from the code under test.
CARDS = (
    *(("4", 16), ("4", 19), ("51", 16), ("55", 16), ("2221", 16), ("2720", 16), ("34", 15)),
    *(("37", 15), ("300", 14), ("305", 14), ("36", 14), ("38", 14), ("6011", 16), ("6011", 19)),
    *(("644", 16), ("649", 16), ("65", 16), ("3528", 16), ("3589", 16), ("62", 16), ("62", 17)),
    *(("62", 19), ("50", 16), ("56", 16), ("6759", 16), ("6304", 19), ("67", 18), ("2200", 16)),
)


@pytest.mark.parametrize(
    "text",
    [
        VISA,
        f"my card is {VISA}.",
        "4242 4242 4242 4242",
        "4242-4242-4242-4242",
        "4242.4242.4242.4242",
        f"{VISA} 12/30 123",
        f"pan{VISA}exp1230",
        "378282246310005",
        "3782 822463 10005",
        "30569309025904",
        "6011111111111117",
        "2223003122003222",
        "6304000000000000000",
        "４２４２４２４２４２４２４２４２",
        "4242  4242  4242  4242",
        "4242 \u2013 4242 \u2013 4242 \u2013 4242",
        "4242,4242,4242,4242",
        "4242\u200b4242\u200b4242\u200b4242",
        "4\u200d2\ufeff4\u20602" * 4,
        "4242·4242·4242·4242",
        "4242 / (4242) [4242] #4242",
        "4242\u00a0\u202f4242 \u2014\u2015 4242__4242",
        "4-2-4-2 4-2-4-2 4-2-4-2 4-2-4-2",
        "４２４２－４２４２－４２４２－４２４２",
        "⁴²⁴²⁴²⁴²⁴²⁴²⁴²⁴²",
        "④②④②④②④②④②④②④②④②",
        "𝟒𝟐𝟒𝟐𝟒𝟐𝟒𝟐𝟒𝟐𝟒𝟐𝟒𝟐𝟒𝟐",
        "٤٢٤٢٤٢٤٢٤٢٤٢٤٢٤٢",
        f"{VISA}deadbeef",
        f"{VISA}abcdef0123456789",
        f"{VISA}a1b2c3d4e5f60718a1b2c3d4",
        f"deadbeefdeadbeef{VISA}",
        f"a{VISA}b",
        "4222 222 222 222",
        f"7 {VISA} 9",
    ],
)
def test_card_number_is_found_however_it_is_written(text: str) -> None:
    assert holds_card_number(text)


ESCAPED = {
    "percent": "".join(f"%{ord(digit):02X}" for digit in VISA),
    "percent, one digit": f"{VISA[:5]}%{ord(VISA[5]):02x}{VISA[6:]}",
    "percent, spaces": "4242%204242%204242%204242",
    "percent, no-break spaces": "4242%C2%A04242%c2%a04242%C2%A04242",
    "percent, full width": "%EF%BC%94%EF%BC%92" * 8,
    "percent, cut short": f"{VISA[:15]}%32%",
    "percent of something else": "100%4242 4242 4242 4242",
    "percent and a letter": "100%41 4242424242424242",
    "decimal entities": "".join(f"&#{ord(digit)};" for digit in VISA),
    "decimal entities, zeros": "".join(f"&#000{ord(digit)};" for digit in VISA),
    "decimal entities, no semicolon": "".join(f"&#{ord(digit)} " for digit in VISA),
    "hexadecimal entities": "".join(f"&#x{ord(digit):x};" for digit in VISA),
    "hexadecimal entities, capital": "".join(f"&#X{ord(digit):04X};" for digit in VISA),
    "entities for spaces": "4242&nbsp;4242&#160;4242&ensp;4242",
    "backslash u": "".join(f"\\u{ord(digit):04x}" for digit in VISA),
    "backslash x": "".join(f"\\x{ord(digit):02x}" for digit in VISA),
    "quoted printable": "".join(f"={ord(digit):02X}" for digit in VISA),
}


@pytest.mark.parametrize("text", ESCAPED.values(), ids=ESCAPED)
def test_card_number_in_escapes_is_found_and_hidden(text: str) -> None:
    whole = f"note: {text} end"

    assert holds_card_number(whole)
    assert "4242" not in clean_text(whole).replace(" ", "")
    assert text not in clean_text(whole)
    # Around it nothing is lost.
    assert clean_text(whole).startswith("note: ")
    assert clean_text(whole).endswith("end")


def test_escaped_number_before_a_plain_one_is_hidden_too() -> None:
    escaped = ESCAPED["percent"]

    assert clean_text(f"a {escaped} b {VISA} c") == "a [redacted] b [redacted] c"
    assert clean_text(f"a {VISA} b {escaped} c") == "a [redacted] b [redacted] c"


@pytest.mark.parametrize(
    "text",
    [
        "https://shop.example/?order=123%20456&q=%34%32",
        "50%25 off, 20%-30%, R&D; A&B &amp; C",
        "a=12 b=34 c=56 d=78 e=90 f=12 g=34",
        "100%20" * 50,
        "&#5;" * 30,
        "\\u00e9t\\u00e9 \\x34",
    ],
)
def test_escapes_in_ordinary_texts_pass(text: str) -> None:
    assert not holds_card_number(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "order-123",
        "4242424242424241",
        "424242424242",
        "4222222222222",
        "1700000000000000000",
        "2026-11-24T04:32:51.123456Z",
        "pm_card_visa",
        "pay_01a20bc8c9c3762abd2bab57f8e90276",
        "+49 30 901820 0",
        f"1{VISA}",
        f"{VISA}1",
    ],
)
def test_other_numbers_pass(text: str) -> None:
    assert not holds_card_number(text)


@pytest.mark.parametrize("kind", KINDS)
def test_ordinary_references_are_never_refused(kind: str) -> None:
    assert [text for text in references(KINDS[kind], 3000) if holds_card_number(text)] == []


@pytest.mark.parametrize(
    ("kind", "share"),
    [
        ("UUID without dashes", 0.0005),
        ("SHA-1", 0.0005),
        ("order, 14 digits", 0.006),
        ("order, 15 digits", 0.004),
        ("order, 16 digits", 0.05),
        ("IMEI", 0.0),
    ],
)
def test_long_numbers_are_refused_at_a_known_rate(kind: str, share: float) -> None:
    given = references(LONG_KINDS[kind], 10_000)

    assert sum(map(holds_card_number, given)) / len(given) <= share


@given(
    st.sampled_from(CARDS),
    st.text("0123456789", min_size=19, max_size=19),
    st.lists(st.integers(1, 6), min_size=19, max_size=19),
    st.text(" -.,/_·\u200b\u2013\u00a0", min_size=1, max_size=4),
    st.sampled_from([("", ""), ("ref ", " end"), ("#", "/"), ("(", ")")]),
)
def test_every_number_of_an_issuer_is_found_in_any_grouping(
    card: tuple[str, int], digits: str, sizes: list[int], separator: str, around: tuple[str, str]
) -> None:
    prefix, length = card
    number = (prefix + digits)[: length - 1]
    checked = next(number + last for last in "0123456789" if luhn_sum(number + last) % 10 == 0)
    ends = [0, *accumulate(sizes)]
    groups = [checked[at:end] for at, end in pairwise(ends) if at < length]

    for text in (checked, separator.join(groups)):
        whole = around[0] + text + around[1]
        begin, end = next(card_number_spans(whole))
        assert whole[begin:end] == text
        assert text not in clean_text(whole)


@pytest.mark.parametrize(
    "piece",
    [
        "4",
        "4 ",
        "4242 ",
        "4\u200b",
        "㊷",
        "4" * 19 + " ",
        "1a",
        "f",
        f"{VISA}f",
        "4242424242424241 ",
        *("%34", "%", "%3", "=34", "&#52;", "&#", "&", "&a", "&nbsp;", "\\u0034", "%34 &#50;4 "),
    ],
)
def test_time_grows_with_the_length_and_no_faster(piece: str) -> None:
    text = (piece * 65536)[:65536]
    began_s = thread_time()

    sum(1 for _ in card_number_spans(text))

    # A tenth of it on an idle machine; the quadratic matcher needed minutes.
    assert thread_time() - began_s < 2.0


def test_card_number_over_key_and_value_is_hidden_in_logs() -> None:
    assert "55554444" not in str(clean({"55555555": "55554444"}))
    assert "55554444" not in str(clean({"55555555": 55554444}))


def test_huge_integer_is_logged_as_a_word() -> None:
    assert clean(10**5000) == "(huge)"


def luhn_sum(digits: str) -> int:
    """ISO/IEC 7812-1, annex B, written another way than the code under test."""
    doubled = {"0": 0, "1": 2, "2": 4, "3": 6, "4": 8, "5": 1, "6": 3, "7": 5, "8": 7, "9": 9}
    odd, even = digits[-1::-2], digits[-2::-2]
    return sum(map(int, odd)) + sum(doubled[digit] for digit in even)
