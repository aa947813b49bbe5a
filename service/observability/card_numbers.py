"""Finds card numbers in a text, so that requests refuse them and logs hide them. Pure, linear time.

A card number is a sequence of whole digit groups, with anything but letters between them, that
has an issuer's prefix, one of that issuer's lengths, and a right check digit (Luhn).

The issuers' ranges and lengths are those that public tables give for the numbering of ISO/IEC 7812
(compared with Braintree's `credit-card-type`, `src/lib/card-types.ts`). These choices are ours:

- Visa's 13 digits: the table has none, since Visa has issued 16 and 19 for decades. Timestamps in
  milliseconds, EAN-13 and many order numbers have thirteen digits, so that length counts only
  in the grouping in which such cards were printed, 4-3-3-3.
- Maestro and UnionPay below 16 digits: telephone numbers (E.164) look alike, and cards sold online
  have at least 16.
- A time in ISO 8601 format is ignored: no card begins with a year.
- An identifier in hexadecimal digits holds long decimal runs by chance. A UUID with its dashes is
  ignored; of one without, and of a digest, only the beginning and the end are checked.
- Characters that are written as escapes (`%34`, `&#52;`, `&nbsp;`, `\\u0034`, `=34`) are read once more as
  the characters that they stand for, since one of the next programs will do so; once, not repeatedly.
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Iterator
from functools import lru_cache
from itertools import accumulate

# (first prefix, last prefix, lengths), prefixes of the same number of digits, at most four.
_ISSUERS = (
    ("4", "4", (13, 16, 19)),  # Visa
    ("51", "55", (16,)),  # Mastercard
    ("2221", "2720", (16,)),  # Mastercard
    ("34", "34", (15,)),  # American Express
    ("37", "37", (15,)),
    ("300", "305", (14, 16, 19)),  # Diners Club
    ("36", "36", (14, 16, 19)),
    ("38", "39", (14, 16, 19)),
    ("6011", "6011", (16, 19)),  # Discover
    ("644", "649", (16, 19)),
    ("65", "65", (16, 19)),
    ("3528", "3589", (16, 17, 18, 19)),  # JCB
    ("62", "62", (16, 17, 18, 19)),  # UnionPay
    ("810", "817", (16, 17, 18, 19)),
    ("50", "50", (16, 18, 19)),  # Maestro, Verve, Elo
    ("56", "59", (16, 18, 19)),
    ("60", "69", (16, 18, 19)),
    ("2200", "2204", (16, 17, 18, 19)),  # Mir
    ("9792", "9792", (16,)),  # Troy
)
_PREFIX_DIGITS = 4
_SHORTEST = 13
_PRINTED_13 = (4, 3, 3, 3)

# Everything between two letters: digits and separators. One character class, so linear.
_RUN = re.compile(r"[^a-z]{13,}", re.IGNORECASE | re.ASCII)
_GROUP = re.compile(r"[0-9]+")
_HEX = re.compile(
    r"(?<![0-9a-z])(?:(?P<uuid>[0-9a-f]{8}-[0-9a-f]{4}-[1-8][0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12})"
    r"|(?P<digest>[0-9a-f]{24,128}))(?![0-9a-z])",
    re.IGNORECASE,
)
_MOMENT = re.compile(
    r"(?<![0-9])(?:19|20|21)[0-9]{2}-[01][0-9]-[0-3][0-9][Tt ][0-2][0-9]:[0-5][0-9]"
    r"(?::[0-6][0-9](?:[.,][0-9]{1,9})?)?(?:[+-][01][0-9]:?[0-5][0-9])?(?![0-9])"
)
# MongoDB's ids, UUIDs without dashes and MD5, SHA-1, SHA-2 of 224 to 512 bits.
_DIGEST_LENGTHS = frozenset({24, 32, 40, 56, 64, 96, 128})
_EDGE = re.compile(r"\A[0-9]+|[0-9]{16,}\Z")
_LETTER = re.compile(r"[a-z]", re.IGNORECASE)
# Percent escapes in a row are the bytes of UTF-8. The lengths are bounded, so each is read once.
_ESCAPE = re.compile(
    r"(?:%[0-9a-f]{2})+|(?:=[0-9a-f]{2})+|\\u[0-9a-f]{4}|\\x[0-9a-f]{2}"
    r"|&\#(?:x[0-9a-f]{1,8}|[0-9]{1,8});?|&[a-z][a-z0-9]{1,31};",
    re.IGNORECASE,
)


def holds_card_number(text: str) -> bool:
    """Whether the text contains a card number, however it is grouped or written."""
    return next(card_number_spans(text), None) is not None


def card_number_spans(text: str) -> Iterator[tuple[int, int]]:
    """The card numbers as (begin, end) in `text`, from left to right; they may overlap."""
    if len(text) < _SHORTEST:
        return
    if _ESCAPE.search(text) is None:
        yield from _spans_as_written(text)
    else:
        # Read both ways: in "100%42 4242 .." the escape would hide a digit of the number.
        yield from sorted({*_spans_as_written(text), *_spans_unescaped(text)})


def _spans_as_written(text: str) -> Iterator[tuple[int, int]]:
    folded = text if text.isascii() else text.translate(_FOLDING)
    if _RUN.search(folded) is None:
        return
    origins = None if len(folded) == len(text) else _origins(text)
    masked = _HEX.sub(_mask_identifier, folded)
    masked = _MOMENT.sub(lambda moment: "x" * len(moment[0]), masked)
    for run in _RUN.finditer(masked):
        for begin, end in _spans_of_run(masked, run.start(), run.end()):
            if origins is None:
                yield begin, end
            else:
                yield origins[begin], origins[end - 1] + 1


def _spans_unescaped(text: str) -> Iterator[tuple[int, int]]:
    """The card numbers of the text with its escapes read, as places in the text as written."""
    pieces: list[str] = []
    # For each character that is read: where its original begins and ends.
    begins: list[int] = []
    ends: list[int] = []
    at = 0
    for match in _ESCAPE.finditer(text):
        first, last = match.span()
        plain = _unescaped(match[0])
        pieces += [text[at:first], plain]
        begins += [*range(at, first), *[first] * len(plain)]
        ends += [*range(at + 1, first + 1), *[last] * len(plain)]
        at = last
    pieces.append(text[at:])
    begins += range(at, len(text))
    ends += range(at + 1, len(text) + 1)
    for begin, end in _spans_as_written("".join(pieces)):
        yield begins[begin], ends[end - 1]


def _unescaped(escape: str) -> str:
    if escape[0] in "%=":
        return bytes.fromhex(escape.replace(escape[0], "")).decode("utf-8", "replace")
    if escape[0] == "&":
        return html.unescape(escape)
    return chr(int(escape[2:], 16))


def _spans_of_run(text: str, begin: int, end: int) -> Iterator[tuple[int, int]]:
    groups = [match.span() for match in _GROUP.finditer(text, begin, end)]
    digits = "".join([text[first:last] for first, last in groups])
    if len(digits) < _SHORTEST:
        return
    offsets = [0, *accumulate(last - first for first, last in groups)]
    group_ending_at = {offset: index for index, offset in enumerate(offsets[1:])}
    sums: tuple[list[int], list[int]] | None = None
    for index, at in enumerate(offsets[:-1]):
        for length in _LENGTHS.get(digits[at : at + _PREFIX_DIGITS], ()):
            last = group_ending_at.get(at + length)
            if last is None:
                continue
            sums = sums or _luhn_sums(digits)
            passed = sums[(at + length) % 2]
            if (passed[at + length] - passed[at]) % 10 == 0 and (
                length != _SHORTEST or _is_printed_13(groups[index : last + 1])
            ):
                yield groups[index][0], groups[last][1]


def _is_printed_13(groups: list[tuple[int, int]]) -> bool:
    return tuple(end - begin for begin, end in groups) == _PRINTED_13


def _luhn_sums(digits: str) -> tuple[list[int], list[int]]:
    """Running sums of Luhn's check for numbers that end before an even and an odd place.

    With them each number costs one subtraction, however many there are: the check is linear.
    """
    plain = [ord(digit) - 48 for digit in digits]
    doubled = [_DOUBLED[digit] for digit in plain]
    # An odd place precedes an even one: that digit counts once, its neighbour twice.
    even, odd = doubled.copy(), plain.copy()
    even[1::2], odd[1::2] = plain[1::2], doubled[1::2]
    return [0, *accumulate(even)], [0, *accumulate(odd)]


_DOUBLED = (0, 2, 4, 6, 8, 1, 3, 5, 7, 9)


def _mask_identifier(match: re.Match[str]) -> str:
    """Letters in place of an identifier, unless it begins or ends with a card number."""
    found = match[0]
    if _LETTER.search(found) is None:
        return found
    if match["digest"]:
        edges = _EDGE.findall(found)
        if len(found) not in _DIGEST_LENGTHS or any(
            True for edge in edges for _ in _spans_of_run(edge, 0, len(edge))
        ):
            return found
    return "x" * len(found)


class _Folding:
    """For `str.translate`: every script's digits as ASCII, letters as x, all others as spaces.

    Invisible characters (zero-width characters, combining marks) become spaces like separators.
    """

    def __getitem__(self, code: int) -> str:
        return _folded(code)


_FOLDING = _Folding()


# Bounded: there are a million characters, and a caller could send them all.
@lru_cache(maxsize=4096)
def _folded(code: int) -> str:
    if code < 128:
        return chr(code)
    folded = ""
    letter = False
    for character in unicodedata.normalize("NFKC", chr(code)):
        digit = unicodedata.decimal(character, None)
        letter = letter or character.isalpha()
        folded += str(digit) if digit is not None else " "
    return folded if folded.strip() else ("x" if letter else " ")


def _origins(text: str) -> list[int]:
    """For each folded character the place of its original."""
    return [place for place, character in enumerate(text) for _ in _folded(ord(character))]


def _lengths_by_prefix() -> dict[str, tuple[int, ...]]:
    lengths: dict[str, set[int]] = {}
    for first, last, allowed in _ISSUERS:
        open_digits = _PREFIX_DIGITS - len(first)
        for prefix in range(int(first) * 10**open_digits, (int(last) + 1) * 10**open_digits):
            lengths.setdefault(f"{prefix:04}", set()).update(allowed)
    # The longest first: no end of a number remains readable in a log.
    return {prefix: tuple(sorted(allowed, reverse=True)) for prefix, allowed in lengths.items()}


_LENGTHS = _lengths_by_prefix()
