"""/healthz (this process runs) and /readyz (payments can be stored here)."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable
from time import monotonic
from typing import Literal

from flask import Blueprint, Response
from pydantic import BaseModel

from service.errors import Busy
from service.resilience.deadline import Deadline
from service.web.http.parts import parts_of
from service.web.openapi.operation import Operation, documented

log = logging.getLogger(__name__)

# Without an answer within this time we are not ready; a balancer's timeout is rarely shorter.
CHECK_TIMEOUT_S = 0.8
# Probes come from many balancers at once; this limits the queries to the database.
CHECK_EVERY_S = 0.5
_MEDIA_TYPE = "application/health+json"


class Health(BaseModel):
    """Whether this process can serve; `reason` says why not."""

    status: Literal["pass", "fail"]
    reason: str | None = None


class Readiness:
    """Whether payments can be stored here, by the newest check; one thread at a time checks.

    The payment provider does not count: while it is down payments are stored and sent later.
    """

    def __init__(
        self, check_ready: Callable[[Deadline], str | None], *, is_stopping: Callable[[], bool]
    ) -> None:
        """`check_ready` names the missing part (database, migrations), None when there is none."""
        self._check_ready = check_ready
        self._is_stopping = is_stopping
        self._checking = threading.Lock()
        self._reason: str | None = "not checked yet"
        self._until_s = 0.0

    def reason(self) -> str | None:
        """Why payments cannot be stored here, or None. Other threads use the last result."""
        if self._is_stopping():
            return "stopping"
        if monotonic() >= self._until_s and self._checking.acquire(blocking=self._until_s == 0.0):
            try:
                self._reason = self._check()
                self._until_s = monotonic() + CHECK_EVERY_S
            finally:
                self._checking.release()
        return self._reason

    def _check(self) -> str | None:
        try:
            return self._check_ready(Deadline.after(CHECK_TIMEOUT_S))
        except Busy as error:
            log.warning("health.not_ready", extra={"code": error.code, "detail": error.detail})
            return error.code


blueprint = Blueprint("health", __name__)


@blueprint.get("/healthz")
@documented(
    Operation(
        summary="This process runs", answers={200: ("It runs", Health)}, media_type=_MEDIA_TYPE
    )
)
def healthz() -> Response:
    return _answer(None)


@blueprint.get("/readyz")
@documented(
    Operation(
        summary="Payments can be stored here",
        answers={200: ("Ready", Health), 503: ("Not ready; `reason` says why", Health)},
        media_type=_MEDIA_TYPE,
    )
)
def readyz() -> Response:
    return _answer(parts_of(Readiness).reason())


def _answer(reason: str | None) -> Response:
    document = {"status": "pass" if reason is None else "fail", "reason": reason}
    return Response(
        json.dumps(document) + "\n",
        200 if reason is None else 503,
        content_type=_MEDIA_TYPE,
    )
