"""Holds faults on the links: orders to the fault proxy, and the heartbeat that keeps them alive."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from pathlib import Path
from types import TracebackType
from typing import Any

from service.simulation.faults import BEAT_EVERY_S

# The proxy answers in a millisecond; a second without a word means that it is gone.
ANSWER_TIMEOUT_S = 1.0


class ProxyGone(Exception):
    """The fault proxy does not answer; whatever it held on the links has ended, or ends by itself."""


class StrikeRefused(Exception):
    """The fault proxy will not do that; the message is its own."""


class Striker:
    """One holder of faults. When it is closed, or its process dies, all its faults end.

    Safe in many threads. Raises ProxyGone from every call once the proxy is gone.
    """

    def __init__(self, control_path: Path) -> None:
        self._lock = threading.Lock()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(ANSWER_TIMEOUT_S)
        self._answers = self._socket.makefile("rb")
        self._closed = threading.Event()
        try:
            self._socket.connect(str(control_path))
        except OSError as error:
            self._answers.close()
            self._socket.close()
            raise ProxyGone(f"The fault proxy does not answer at {control_path}.") from error
        self._heart = threading.Thread(target=self._beat, name="fault-heartbeat", daemon=True)
        self._heart.start()

    def __enter__(self) -> Striker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def strike(self, link: str, mode: str, *, ttl_s: float, pause_ms: float = 100.0) -> None:
        """Put a fault on a link, in place of the one before; it ends after `ttl_s` at the latest."""
        self._order(
            {"do": "strike", "link": link, "mode": mode, "ttl_s": ttl_s, "pause_ms": pause_ms}
        )

    def clear(self) -> None:
        """End all faults."""
        self._order({"do": "clear"})

    def describe(self) -> dict[str, dict[str, Any]]:
        """Each link: its mode (None: no fault), what is left of it, how often it struck."""
        return self._order({"do": "show"})

    def close(self) -> None:
        """Let go: the proxy ends what this holder put on the links. May be called twice."""
        self._closed.set()
        with self._lock:
            self._answers.close()
            self._socket.close()
        if threading.current_thread() is not self._heart:
            self._heart.join(ANSWER_TIMEOUT_S + BEAT_EVERY_S)

    def _beat(self) -> None:
        while not self._closed.wait(BEAT_EVERY_S):
            # Without an answer there is nothing to keep alive; the next order says so aloud.
            with contextlib.suppress(ProxyGone, StrikeRefused):
                self._order({"do": "beat"})

    def _order(self, order: dict[str, Any]) -> dict[str, dict[str, Any]]:
        try:
            with self._lock:
                self._socket.sendall(json.dumps(order).encode() + b"\n")
                line = self._answers.readline()
        except (OSError, ValueError) as error:
            raise ProxyGone("The fault proxy does not answer any more.") from error
        if not line:
            raise ProxyGone("The fault proxy has ended.")
        answer = json.loads(line)
        if not answer["ok"]:
            raise StrikeRefused(answer["error"])
        links: dict[str, dict[str, Any]] = answer["links"]
        return links
