"""Authentication and authorization: API keys as Bearer tokens."""

from __future__ import annotations

import contextlib
import hmac
import threading
from dataclasses import dataclass
from time import monotonic
from uuid import UUID

from flask import request

from service.errors import Busy, Forbidden, Unauthenticated
from service.payments.audit import Actor
from service.payments.merchants import (
    DRILL_MERCHANT_ID,
    ApiKey,
    KeyStore,
    Mode,
    hash_key,
    parse_key,
)
from service.resilience.deadline import Deadline
from service.web.http import request_scope
from service.web.http.rate_limits import RateLimits, Strangers

# A revoked key stops working within this time; a cached key costs no round trip.
REMEMBER_S = 5.0
# Keys in a worker's cache; beyond it the oldest entry is evicted, which costs a look-up.
REMEMBERED = 1024
# Ids without a key have a separate cache: invented ids must not evict real ones.
UNKNOWN_REMEMBERED = 1024


@dataclass(frozen=True, slots=True)
class Caller:
    """The authenticated caller of a request."""

    merchant_id: UUID
    key_id: str
    mode: str
    scopes: frozenset[str]
    # The merchant has the maximum number of open payments: no further ones for now.
    has_too_many_open: bool = False
    label: str | None = None

    def actor(self) -> Actor:
        """The caller for the audit log, with the address and the id of the request being served."""
        return Actor(
            "api_key",
            self.key_id,
            label=self.label,
            address=request.remote_addr,
            request_id=request_scope.request_id(),
        )


class Authenticator:
    """Identifies the sender of the current request. One per worker; thread-safe."""

    def __init__(
        self,
        keys: KeyStore,
        limits: RateLimits | None = None,
        *,
        mode: Mode | None = None,
        strangers: Strangers | None = None,
    ) -> None:
        """`mode` is the provider's; None when it has no key, so that no money can move."""
        self._keys = keys
        self._limits = limits
        self._mode = mode
        self._strangers = strangers or Strangers()
        # Expired entries remain: the id of a known key is read again without the strangers' limit.
        self._known: dict[str, tuple[ApiKey, float]] = {}
        self._unknown: dict[str, float] = {}
        self._remembering = threading.Lock()

    def __call__(self, scope: str, deadline: Deadline) -> Caller:
        """The caller, which has `scope`; raises Unauthenticated, Forbidden, RateLimited, or Busy."""
        api_key = _bearer()
        parsed = parse_key(api_key)
        if parsed is None:
            raise Unauthenticated("The API key is not one of ours.")
        key, is_fresh = self._find(parsed[1], deadline)
        # Compared even without such a key, so that the response time reveals nothing.
        expected = key.secret_sha256 if key is not None else bytes(32)
        matches = hmac.compare_digest(hash_key(api_key), expected)
        if key is None or not matches or not key.is_live:
            raise Unauthenticated("The API key is unknown, revoked or expired.")
        # Checked at each request, not at the look-up: cached keys are checked as well.
        if self._mode is not None and {key.mode, parsed[0]} != {self._mode}:
            raise Forbidden(_WRONG_MODE[self._mode])
        if self._limits is not None:
            self._limits.take(key.key_id)
        if key.merchant_id == DRILL_MERCHANT_ID:
            request_scope.note_drill()
        if scope not in key.scopes:
            raise Forbidden(f"The API key lacks the scope {scope!r}.")
        if is_fresh and key.touch_due:
            # The time of a key's last use is useful, but its loss must not refuse a payment.
            with contextlib.suppress(Busy):
                self._keys.touch(key.key_id, deadline)
        return Caller(
            key.merchant_id, key.key_id, key.mode, key.scopes, key.has_too_many_open, key.label
        )

    def _find(self, key_id: str, deadline: Deadline) -> tuple[ApiKey | None, bool]:
        """The key's row or its absence, at most REMEMBER_S old, and whether it was just read."""
        now_s = monotonic()
        key, until_s = self._known.get(key_id, (None, 0.0))
        if now_s < until_s:
            return key, False
        if now_s < self._unknown.get(key_id, 0.0):
            return None, False
        if key is None and not self._is_known_on_host(key_id):
            self._strangers.take(request.remote_addr or "")
        key = self._keys.find(key_id, deadline)
        self._remember(key_id, key, now_s + REMEMBER_S)
        return key, True

    def _is_known_on_host(self, key_id: str) -> bool:
        """Whether a worker of this host accepted the key lately, perhaps before this one started."""
        return self._limits is not None and self._limits.knows(key_id)

    def _remember(self, key_id: str, key: ApiKey | None, until_s: float) -> None:
        with self._remembering:
            self._known.pop(key_id, None)
            self._unknown.pop(key_id, None)
            if key is not None:
                self._known[key_id] = (key, until_s)
            else:
                self._unknown[key_id] = until_s
            for remembered, most in (
                (self._known, REMEMBERED),
                (self._unknown, UNKNOWN_REMEMBERED),
            ):
                while len(remembered) > most:
                    # Insertion order: the first is the oldest.
                    remembered.pop(next(iter(remembered)))


_WRONG_MODE: dict[Mode, str] = {
    "live": "This API key is for test money, but the provider here moves real money: use hf_live_..",
    "test": "This API key is for real money, but the provider here is in test mode: use hf_test_..",
}


def _bearer() -> str:
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not token:
        raise Unauthenticated("Send the API key as 'Authorization: Bearer hf_...'.")
    # Blanks and tabs only: Python's other white space is not white space in HTTP.
    return token.strip(" \t")
