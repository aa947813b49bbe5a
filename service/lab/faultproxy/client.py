"""The client of the fault proxy: sends its orders, and the heartbeat that keeps faults active."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from pathlib import Path
from types import TracebackType
from typing import Any

from service.lab.faultproxy.faults import BEAT_EVERY_S

# The proxy answers within a millisecond; a second without an answer means that it is gone.
ANSWER_TIMEOUT_S = 1.0


class ProxyGone(Exception):
    """The fault proxy does not answer; its faults on the links have ended, or end by themselves."""


class FaultRefused(Exception):
    """The fault proxy refuses the order; the message is the proxy's own."""


class FaultClient:
    """One holder of faults. When it closes, or its process dies, all its faults end.

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

    def __enter__(self) -> FaultClient:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def inject(self, link: str, mode: str, *, ttl_s: float, pause_ms: float = 100.0) -> None:
        """Inject a fault on a link, replacing the current one; it ends after `ttl_s` at the latest."""
        self._order(
            {"do": "inject", "link": link, "mode": mode, "ttl_s": ttl_s, "pause_ms": pause_ms}
        )

    def clear(self) -> None:
        """End all faults."""
        self._order({"do": "clear"})

    def describe(self) -> dict[str, dict[str, Any]]:
        """Each link: its mode (None: no fault), the time left, and the number of faulted exchanges."""
        return self._order({"do": "show"})

    def close(self) -> None:
        """Disconnect: the proxy ends all faults of this holder. A second call does nothing."""
        self._closed.set()
        with self._lock:
            self._answers.close()
            self._socket.close()
        if threading.current_thread() is not self._heart:
            self._heart.join(ANSWER_TIMEOUT_S + BEAT_EVERY_S)

    def _beat(self) -> None:
        while not self._closed.wait(BEAT_EVERY_S):
            # Without an answer there is no fault to keep active; the next order raises the error.
            with contextlib.suppress(ProxyGone, FaultRefused):
                self._order({"do": "beat"})

    def _order(self, order: dict[str, Any]) -> dict[str, dict[str, Any]]:
        try:
            with self._lock:
                self._socket.sendall(json.dumps(order).encode() + b"\n")
                line = self._answers.readline()
        except (OSError, ValueError) as error:
            raise ProxyGone("The fault proxy no longer answers.") from error
        if not line:
            raise ProxyGone("The fault proxy has ended.")
        answer = json.loads(line)
        if not answer["ok"]:
            raise FaultRefused(answer["error"])
        links: dict[str, dict[str, Any]] = answer["links"]
        return links
