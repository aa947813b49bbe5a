"""A small application that test_gunicorn_worker.py serves: it holds, echoes, and says who it is."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from service.web.server import lifecycle

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

RELEASE = Path(os.environ["HOLDFAST_HOME"]) / "release"
# More than the buffers of both ends together.
FLOOD_BYTES = 64 * 1024 * 1024
# Past it a test has failed anyway; the thread must not outlive it for long.
LONGEST_HOLD_S = 120.0


def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """`/hold` answers when the file RELEASE is there, `/flood` with more than fits; else the pid."""
    body = environ["wsgi.input"].read()
    if environ["PATH_INFO"] == "/hold":
        end_s = time.monotonic() + LONGEST_HOLD_S
        while not RELEASE.exists() and time.monotonic() < end_s:
            time.sleep(0.005)
    status = "200 OK"
    if environ["PATH_INFO"] == "/readyz" and lifecycle.is_stopping():
        status = "503 Service Unavailable"
    answer = f"{os.getpid()} {len(body)}".encode()
    if environ["PATH_INFO"] == "/flood":
        answer = bytes(FLOOD_BYTES)
    start_response(status, [("Content-Length", str(len(answer))), ("Content-Type", "text/plain")])
    return [answer]
