"""How much each API key may ask, and how every answer says what is left of it."""

from __future__ import annotations

import math

from flask import Flask, Response, request

from service.errors import RateLimited
from service.resilience.rate_limit import Allowance, RateLimit

_ALLOWANCE = "holdfast.allowance"


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
