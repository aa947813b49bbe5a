"""Receives Alertmanager's messages in a local run and prints them: the terminal is the pager."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

# The size limit of a message; Alertmanager's messages have a few kB.
BODY_BYTES_MAX = 1024 * 1024
WORDS = {"pages": "PAGE", "tickets": "ticket", "drills": "drill"}


class Pager:
    """Serves the receivers of deploy/alertmanager on loopback, and reports each change once."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell
        self._lock = threading.Lock()
        # The last reported state of each alert: "firing" or "resolved".
        self._sent: dict[tuple[str, str], str] = {}
        self._woken_by: set[str] = set()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self._receive))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, name="pager")

    @property
    def bind(self) -> str:
        """Its host:port."""
        return f"127.0.0.1:{self._server.server_address[1]}"

    def woken_by(self) -> set[str]:
        """The names of the alerts that have paged since the last `forget`."""
        with self._lock:
            return set(self._woken_by)

    def forget(self) -> None:
        """Clear the record of pages; an alert that continues to fire does not page again."""
        with self._lock:
            self._woken_by.clear()

    def __enter__(self) -> Pager:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _receive(self, receiver: str, alerts: list[Mapping[str, Any]]) -> None:
        # A message repeats all alerts of its group; only changes are reported.
        for alert in alerts:
            labels, status = alert["labels"], alert["status"]
            key = (receiver, json.dumps(labels, sort_keys=True))
            with self._lock:
                is_news = self._sent.get(key, "resolved") != status
                self._sent[key] = status
                if is_news and status == "firing" and receiver == "pages":
                    self._woken_by.add(labels["alertname"])
            if is_news:
                self._tell(_line(receiver, alert))


def _line(receiver: str, alert: Mapping[str, Any]) -> str:
    name, window = alert["labels"]["alertname"], alert["labels"].get("long_window")
    if window:
        # Several windows of one budget may burn at once.
        name = f"{name} ({window})"
    if alert["status"] == "resolved":
        return f"{'over':<7} {name}"
    return f"{WORDS.get(receiver, receiver):<7} {name}: {alert['annotations'].get('summary', '')}"


def _handler(
    receive: Callable[[str, list[Mapping[str, Any]]], None],
) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            if not 0 < length <= BODY_BYTES_MAX:
                self.send_error(413)
                return
            try:
                message = json.loads(self.rfile.read(length))
                receive(self.path.strip("/"), message["alerts"])
            except (ValueError, KeyError, TypeError):
                self.send_error(400)
                return
            self.send_response(204)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            """Suppress the request log: the pages themselves are printed."""

    return Handler
