"""The rate limit of each API key, and the headers that report its remainder."""

from __future__ import annotations

import ipaddress
import math
from pathlib import Path

from flask import Flask, Response, request

from service.errors import RateLimited
from service.resilience.rate_limit import Allowance, RateLimit

_ALLOWANCE = "holdfast.allowance"
# A deploy with a dozen new keys passes at once; a scan from one address ends after a few.
EACH_PER_S, EACH_BURST = 5.0, 50
# A twentieth of the look-ups that one database connection does in a second.
TOGETHER_PER_S, TOGETHER_BURST = 50.0, 250


class RateLimits:
    """Checked once a request, after its authentication and before any other read or write."""

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
        """Whether a request with this key was counted on this host, so that the key was valid."""
        return self._limit.has_seen(key_id)


class Strangers:
    """Look-ups of API keys that this host has never seen: bounded for each address, and in all.

    An invented key costs one query. Keys that were valid here before bypass this limit, so that
    unknown keys can exclude only other unknown keys.
    """

    def __init__(self, directory: Path | None = None) -> None:
        """Counted by all workers together in `directory`; without it, by this process alone."""
        each, together = (directory and directory / f"strangers-{name}" for name in ("each", "all"))
        self._each = RateLimit(each, per_s=EACH_PER_S, burst=EACH_BURST)
        self._together = RateLimit(together, per_s=TOGETHER_PER_S, burst=TOGETHER_BURST)

    def take(self, address: str) -> None:
        """Count one look-up for the request being served; raises RateLimited."""
        # The address first: one flooding address must not use up the common limit.
        allowance = self._each.take(_network(address))
        if allowance.is_granted:
            allowance = self._together.take("all")
        if not allowance.is_granted:
            request.environ[_ALLOWANCE] = allowance
            raise RateLimited(
                "Too many unknown API keys came from this address.",
                retry_after_s=allowance.retry_after_s,
            )


def _network(address: str) -> str:
    """The address, or the /64 of an IPv6 address: a single caller owns the whole /64."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return "unknown"
    if parsed.version == 4:
        return address
    mapped = parsed.ipv4_mapped
    return str(mapped) if mapped else str(ipaddress.ip_network((parsed, 64), strict=False))


def install(app: Flask) -> None:
    """Report the remaining rate in the answer to every counted request."""
    app.after_request(_tell)


def _tell(answer: Response) -> Response:
    allowance: Allowance | None = request.environ.get(_ALLOWANCE)
    if allowance is not None:
        # The IETF draft's two fields, then the three older ones that clients know.
        window_s, full_in_s = math.ceil(allowance.window_s), math.ceil(allowance.full_in_s)
        headers = answer.headers
        headers["RateLimit-Policy"] = f'"key";q={allowance.burst};w={window_s}'
        headers["RateLimit"] = f'"key";r={allowance.remaining};t={full_in_s}'
        headers["RateLimit-Limit"] = str(allowance.burst)
        headers["RateLimit-Remaining"] = str(allowance.remaining)
        headers["RateLimit-Reset"] = str(full_in_s)
    return answer
