"""TLS in front of a provider, with faults of the link: they are equal for every provider behind it."""

from __future__ import annotations

import contextlib
import http.client
import ssl
import threading
from collections.abc import Iterator, Mapping
from urllib.parse import urlsplit

from tests.support.processes.fault_server import FaultServer, Peer, answer, certificate

# The faults of a call; for those "after" the provider acts on the call first.
FAULTS = (
    *("hang", "hang_after", "reset", "reset_after", "truncate_after"),
    *("garbage_after", "error_500_after", "error_503", "error_429"),
)
_TOO_MANY = b'{"error": {"type": "rate_limit_error", "code": "rate_limit", "message": "Slower."}}'
# Headers of this connection, not of the message.
_HOP_BY_HOP = frozenset({"connection", "transfer-encoding", "content-length", "keep-alive"})


class TlsFront:
    """Relays each call to `upstream_url` (plain, or TLS with its own CA) while no fault is on."""

    def __init__(self, upstream_url: str, ca_file: str | None = None) -> None:
        upstream = urlsplit(upstream_url)
        self._address = (upstream.hostname or "", upstream.port or 0)
        self._tls = ssl.create_default_context(cafile=ca_file) if ca_file else None
        self._fault: str | None = None
        self._methods: frozenset[str] = frozenset()
        self._relayed = threading.Condition()
        self._under_way = 0
        self._server = FaultServer(self._serve)
        self.url = self._server.url
        self.ca_file = certificate()

    @contextlib.contextmanager
    def failing(self, fault: str, *methods: str) -> Iterator[None]:
        """Every call with one of these methods (POST: whatever may move money) meets the fault.

        At the end of the block the provider has acted on every call that reached it, answered or not.
        """
        assert fault in FAULTS, fault
        self._methods = frozenset(methods or {"POST"})
        self._fault = fault
        try:
            yield
        finally:
            self._fault = None
            with self._relayed:
                assert self._relayed.wait_for(lambda: self._under_way == 0, timeout=60)

    def close(self) -> None:
        self._server.close()

    def _serve(self, peer: Peer) -> None:
        while request := peer.read_request():
            head, _, body = request.partition(b"\r\n\r\n")
            first, *lines = head.decode("latin-1").split("\r\n")
            method, path, _ = first.split(" ")
            headers = dict(line.split(": ", 1) for line in lines)
            fault = self._fault if method in self._methods else None
            if fault is None:
                peer.send(self.relay(method, path, headers, body))
                continue
            content = b""
            if fault.endswith("_after"):
                content = self.relay(method, path, headers, body)
            if not self._fail(peer, fault.removesuffix("_after"), content):
                return

    @staticmethod
    def _fail(peer: Peer, fault: str, content: bytes) -> bool:
        """Apply the fault; returns whether the connection is still usable."""
        match fault:
            case "hang":
                peer.hold()
            case "reset":
                peer.reset()
            case "truncate":
                peer.send(content[:-1])
            case "garbage":
                peer.send(answer(200, b"<html>It works!</html>", content_type="text/html"))
                return True
            case "error_500" | "error_503":
                peer.send(answer(int(fault[-3:]), b'{"error": {"type": "api_error"}}'))
                return True
            case "error_429":
                peer.send(answer(429, _TOO_MANY))
                return True
        return False

    def relay(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> bytes:
        """The upstream's whole answer, in the form for the caller."""
        with self._counted():
            return self._asked(method, path, headers, body)

    @contextlib.contextmanager
    def _counted(self) -> Iterator[None]:
        with self._relayed:
            self._under_way += 1
        try:
            yield
        finally:
            with self._relayed:
                self._under_way -= 1
                self._relayed.notify_all()

    def _asked(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> bytes:
        if self._tls is None:
            upstream = http.client.HTTPConnection(*self._address, timeout=60)
        else:
            upstream = http.client.HTTPSConnection(*self._address, timeout=60, context=self._tls)
        with contextlib.closing(upstream):
            passed = {name: text for name, text in headers.items() if _passes(name)}
            upstream.request(method, path, body or None, passed)
            response = upstream.getresponse()
            more = "".join(
                f"{name}: {text}\r\n"
                for name, text in response.getheaders()
                if _passes(name) and name.lower() != "content-type"
            )
            kind = response.getheader("Content-Type", "")
            return answer(response.status, response.read(), content_type=kind, more=more)


def _passes(name: str) -> bool:
    return name.lower() not in _HOP_BY_HOP


@contextlib.contextmanager
def tls_front(upstream_url: str, ca_file: str | None = None) -> Iterator[TlsFront]:
    """A running front; ends with the block."""
    front = TlsFront(upstream_url, ca_file)
    try:
        yield front
    finally:
        front.close()
