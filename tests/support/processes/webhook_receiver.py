"""A merchant's receiver of our webhooks: stores the requests and gives the test's answers."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any

from tests.support.processes.fault_server import FaultServer, Peer, answer


class Receiver:
    """The received requests, as (headers, body), oldest first."""

    def __init__(self) -> None:
        self.got: list[tuple[dict[str, str], bytes]] = []
        # The statuses of the next requests, in turn; afterwards 204.
        self.statuses: list[int] = []
        # Additional header lines of every answer.
        self.more = ""
        self.server = FaultServer(self._behave, tls=False)
        self.url = f"{self.server.url}/hooks?merchant=7"

    @property
    def types(self) -> list[str]:
        return [json.loads(body)["type"] for _, body in self.got]

    def body(self, index: int = -1) -> dict[str, Any]:
        parsed: dict[str, Any] = json.loads(self.got[index][1])
        return parsed

    def _behave(self, peer: Peer) -> None:
        while request := peer.read_request():
            head, _, body = request.partition(b"\r\n\r\n")
            lines = head.decode().split("\r\n")
            named = (line.partition(": ") for line in lines[1:])
            self.got.append(({":line": lines[0]} | {k.lower(): v for k, _, v in named}, body))
            status = self.statuses.pop(0) if self.statuses else 204
            peer.send(answer(status, b"", more=f"Location: http://127.0.0.1:9/\r\n{self.more}"))


@contextlib.contextmanager
def webhook_receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    try:
        yield receiver
    finally:
        receiver.server.close()
