"""Idempotency-Key as Stripe's API v1 treats it."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from service.lab.sandbox.books import SavedAnswer
from service.lab.sandbox.errors import StripeError, invalid

KEY_CHARACTERS_MAX = 255


def check_length(key: str) -> None:
    if len(key) > KEY_CHARACTERS_MAX:
        raise invalid(f"Idempotency keys must be at most {KEY_CHARACTERS_MAX} characters long.")


def fingerprint(encoded_parameters: bytes) -> bytes:
    return hashlib.sha256(encoded_parameters).digest()


def check_same(saved: SavedAnswer, *, key: str, endpoint: str, parameters: bytes) -> None:
    """Refuse a key that is reused for another call."""
    if saved.endpoint != endpoint:
        raise StripeError(
            400,
            "idempotency_error",
            "Keys for idempotent requests can only be used for the same endpoint they were first"
            f" used for ('{saved.endpoint}' vs '{endpoint}'). Try using a key other than '{key}'"
            " if you meant to execute a different request.",
        )
    if saved.fingerprint != fingerprint(parameters):
        raise StripeError(
            400,
            "idempotency_error",
            "Keys for idempotent requests can only be used with the same parameters they were"
            f" first used with. Try using a key other than '{key}' if you meant to execute a"
            " different request.",
        )


class InFlight:
    """The keys with a first call in flight; in memory, since a call ends with the process."""

    def __init__(self) -> None:
        self._running: set[tuple[str, str]] = set()
        self._lock = threading.Lock()

    @contextmanager
    def only(self, account: str, key: str) -> Iterator[None]:
        """Hold the key for the block; StripeError 409 while another call holds it."""
        with self._lock:
            if (account, key) in self._running:
                raise StripeError(
                    409,
                    "idempotency_error",
                    "There is currently another in-progress request using this Idempotent Key"
                    f" (that probably means you submitted twice): {key}. Please try again once"
                    " the other request has completed.",
                    code="idempotency_key_in_use",
                )
            self._running.add((account, key))
        try:
            yield
        finally:
            with self._lock:
                self._running.discard((account, key))
