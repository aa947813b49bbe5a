"""gunicorn's logger without its access log: it would format a line a request, of what was typed."""

from __future__ import annotations

from typing import Any

from gunicorn import glogging


class EventLogger(glogging.Logger):  # type: ignore[misc]
    """Requests are told of by our own events and counted in the metrics."""

    def access(self, resp: Any, req: Any, environ: Any, request_time: Any) -> None:
        """Say nothing. The base class writes whenever a logging configuration is given."""
