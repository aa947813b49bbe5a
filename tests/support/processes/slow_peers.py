"""The forms of a provider's slowness, as behaviours of a fault server."""

from __future__ import annotations

from tests.support.processes.fault_server import Peer

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


def hang(peer: Peer) -> None:
    peer.read_request()
    peer.hold()


def drip_head(peer: Peer) -> None:
    peer.read_request()
    peer.drip(b"HTTP/1.1 200 OK\r\n" + b"X-Drop: 1\r\n" * 1000, every_s=0.02)


def drip_body(peer: Peer) -> None:
    peer.read_request()
    peer.send(HEAD + b"Content-Length: 10000\r\n\r\n")
    peer.drip(b" " * 10000, every_s=0.02)


def hang_in_body(peer: Peer) -> None:
    peer.read_request()
    peer.send(HEAD + b"Content-Length: 100\r\n\r\n{")
    peer.hold()


def stall(peer: Peer) -> None:
    peer.hold()


def drip_handshake(peer: Peer) -> None:
    # A TLS record that announces 16 KiB and never arrives completely.
    peer.drip(b"\x16\x03\x03\x40\x00" + b"\x02" * 16384, every_s=0.02)


SLOW_ANSWERS = (hang, drip_head, drip_body, hang_in_body)
# These need a server that leaves the TLS handshake to them.
SLOW_HANDSHAKES = (stall, drip_handshake)
