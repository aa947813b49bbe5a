"""A next_action for display: without its secrets, and read in linear time."""

from __future__ import annotations

from time import thread_time

import pytest

from service.providers.stripe.json import HIDDEN, NEXT_ACTION_CHARACTERS_MAX, without_secrets

SECRET = "pi_3_secret_4"


@pytest.mark.parametrize(
    ("found", "shown"),
    [
        (f"https://x.test/{SECRET}?a=1", f"https://x.test/{HIDDEN}?a=1"),
        (
            "https://x.test/?client_secret=src-1.2&a=1",
            f"https://x.test/?client_secret={HIDDEN}&a=1",
        ),
        (f"https://x.test/?client_secret={SECRET}#a", f"https://x.test/?client_secret={HIDDEN}#a"),
        ({"a": [SECRET], "Client_Secret": "x"}, {"a": [HIDDEN], "Client_Secret": HIDDEN}),
        (
            "a secret_ and my_secret stay, _secret_ too",
            "a secret_ and my_secret stay, _secret_ too",
        ),
        ("https://x.test/\u00e9_secret_1", f"https://x.test/{HIDDEN}"),
    ],
)
def test_secrets_are_hidden_wherever_they_stand(found: object, shown: object) -> None:
    assert without_secrets(found) == shown


@pytest.mark.parametrize("piece", ["a", "_", "_secret", "_secret_", "client_secret=", "a_secret_ "])
def test_secrets_are_looked_for_in_linear_time(piece: str) -> None:
    found = piece * (NEXT_ACTION_CHARACTERS_MAX // len(piece))
    began_s = thread_time()
    without_secrets(found)
    assert thread_time() - began_s < 0.25
