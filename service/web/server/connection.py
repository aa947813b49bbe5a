"""A client's connection to a worker, with the state of its current request."""

from __future__ import annotations

from typing import Any

from gunicorn.workers import gthread

from service.web.server.framing import Arrival


class ClientConnection(gthread.TConn):  # type: ignore[misc]
    """A client's connection, with the received part of its next request."""

    def __init__(self, *of: Any) -> None:
        super().__init__(*of)
        self.arrival = Arrival()
        # The whole request for the next thread, until the parser there has read it.
        self.request = b""
        self.arrived_s = 0.0
        self.expires_s = 0.0
        self.is_closing = False
        self.is_queued = False
        # The base class would wait for the first byte in a thread.
        self.data_ready = True

    def init(self) -> None:
        """In the thread: give the parser the bytes that the main loop has received."""
        super().init()
        if self.request:
            self.parser.unreader.unread(self.request)
            self.request = b""
