"""The Idempotency-Key header: one key, however it is written, and never two taken for one."""

from __future__ import annotations

from time import thread_time

import pytest

from service.errors import HeaderRepeated, KeyMissing
from service.web.http.idempotency import parse_idempotency_key


@pytest.mark.parametrize("header", ["K", '"K"', '"K";a=1', '\t"K" ; a', " K\t"])
def test_a_key_is_the_same_bare_quoted_and_with_parameters(header: str) -> None:
    assert parse_idempotency_key(header) == "K"


@pytest.mark.parametrize(
    "header",
    [
        "K,K",
        "K, K",
        "K,",
        ",K",
        ", K",
        '"K","K"',
        '"K";a=1, "L"',
        '"K";a=1,"K";a=1',
        '"K",',
        '"K, L',
    ],
)
def test_a_header_that_a_proxy_joined_is_no_key(header: str) -> None:
    with pytest.raises(HeaderRepeated):
        parse_idempotency_key(header)


def test_a_key_with_a_comma_is_written_in_quotes() -> None:
    assert parse_idempotency_key('"K,\\"L"') == 'K,"L'


@pytest.mark.parametrize("header", ["\xa0K", "K\xa0", "K\x85", '"K"\xa0'])
def test_only_blanks_and_tabs_around_a_key_are_dropped(header: str) -> None:
    with pytest.raises(KeyMissing):
        parse_idempotency_key(header)


@pytest.mark.parametrize("piece", ['"', '\\"', '"a"', '";', ",", " ", '"\\'])
def test_a_key_is_read_in_linear_time(piece: str) -> None:
    began_s = thread_time()
    with pytest.raises((HeaderRepeated, KeyMissing)):
        parse_idempotency_key('"' + piece * 20_000)
    assert thread_time() - began_s < 0.25
