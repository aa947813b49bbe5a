"""gunicorn's logger without its access log, which formats the client's input for each request."""

from __future__ import annotations

from typing import Any

from gunicorn import glogging


class EventLogger(glogging.Logger):  # type: ignore[misc]
    """Requests have our own log events and metrics."""

    def access(self, resp: Any, req: Any, environ: Any, request_time: Any) -> None:
        """Write nothing. The base class writes whenever it has a logging configuration."""
