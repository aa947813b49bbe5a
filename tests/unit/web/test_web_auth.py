"""The API key as the Authorization header carries it."""

from __future__ import annotations

import pytest
from flask import Flask

from service.errors import Unauthenticated
from service.web.http.auth import _bearer

KEY = "hf_test_key"


def read(header: str) -> str:
    with Flask(__name__).test_request_context(headers={"Authorization": header}):
        return _bearer()


@pytest.mark.parametrize("header", [f"Bearer {KEY}", f"bearer  {KEY}", f"BEARER {KEY} \t"])
def test_the_key_is_read_without_its_padding(header: str) -> None:
    assert read(header) == KEY


@pytest.mark.parametrize("padding", ["\xa0", "\x85", "\x1f"])
def test_other_white_space_belongs_to_the_key(padding: str) -> None:
    assert read(f"Bearer {KEY}{padding}") != KEY


@pytest.mark.parametrize("header", ["", KEY, f"Basic {KEY}", "Bearer", "Bearer ", f"Bearer\t{KEY}"])
def test_another_scheme_or_no_key_is_refused(header: str) -> None:
    with pytest.raises(Unauthenticated):
        read(header)
