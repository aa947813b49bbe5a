"""How much each API key may ask, and how every answer says what is left of it."""

from __future__ import annotations

import ipaddress
import math
from pathlib import Path

from flask import Flask, Response, request

from service.errors import RateLimited
from service.resilience.rate_limit import Allowance, RateLimit

_ALLOWANCE = "holdfast.allowance"
# A deploy that brings a dozen new keys passes at once; a scan of an address ends after a few.
EACH_PER_S, EACH_BURST = 5.0, 50
# A twentieth of what one database connection looks up in a second.
TOGETHER_PER_S, TOGETHER_BURST = 50.0, 250


class RateLimits:
    """Asked once a request, when it is known whose it is and before anything is read or written."""

    def __init__(self, limit: RateLimit) -> None:
        self._limit = limit

    def take(self, key_id: str) -> None:
        """Count the request being served; raises RateLimited."""
        allowance = self._limit.take(key_id)
        request.environ[_ALLOWANCE] = allowance
        if not allowance.is_granted:
            raise RateLimited(
                "This API key has used up its rate.", retry_after_s=allowance.retry_after_s
            )

    def knows(self, key_id: str) -> bool:
        """Whether a request with this key was counted on this host, so that the key was good."""
        return self._limit.has_seen(key_id)


class Strangers:
    """Look-ups of API keys that this host has never seen: bounded for each address, and in all.

    An invented key costs one query. Keys that were good here before are looked up without asking,
    so that strangers keep out nobody but other strangers.
    """

    def __init__(self, directory: Path | None = None) -> None:
        """Counted by all workers together in `directory`; without it, by this process alone."""
        each, together = (directory and directory / f"strangers-{name}" for name in ("each", "all"))
        self._each = RateLimit(each, per_s=EACH_PER_S, burst=EACH_BURST)
        self._together = RateLimit(together, per_s=TOGETHER_PER_S, burst=TOGETHER_BURST)

    def take(self, address: str) -> None:
        """Count one look-up for the request being served; raises RateLimited."""
        # The address first: one that floods must not use up what all have together.
        allowance = self._each.take(_network(address))
        if allowance.is_granted:
            allowance = self._together.take("all")
        if not allowance.is_granted:
            request.environ[_ALLOWANCE] = allowance
            raise RateLimited(
                "Too many API keys that are not known here came from this address.",
                retry_after_s=allowance.retry_after_s,
            )


def _network(address: str) -> str:
    """The address, or the /64 of an IPv6 one: a single caller has all of those."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return "unknown"
    if parsed.version == 4:
        return address
    mapped = parsed.ipv4_mapped
    return str(mapped) if mapped else str(ipaddress.ip_network((parsed, 64), strict=False))


def install(app: Flask) -> None:
    """Tell every caller whose request was counted what is left."""
    app.after_request(_tell)


def _tell(answer: Response) -> Response:
    allowance: Allowance | None = request.environ.get(_ALLOWANCE)
    if allowance is not None:
        # The IETF draft's two fields, then the three that clients have known for longer.
        window_s, full_in_s = math.ceil(allowance.window_s), math.ceil(allowance.full_in_s)
        headers = answer.headers
        headers["RateLimit-Policy"] = f'"key";q={allowance.burst};w={window_s}'
        headers["RateLimit"] = f'"key";r={allowance.remaining};t={full_in_s}'
        headers["RateLimit-Limit"] = str(allowance.burst)
        headers["RateLimit-Remaining"] = str(allowance.remaining)
        headers["RateLimit-Reset"] = str(full_in_s)
    return answer
