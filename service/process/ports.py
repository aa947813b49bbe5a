"""Chooses a port that is still free when its listener starts, some seconds later."""

from __future__ import annotations

import contextlib
import random
import socket
from pathlib import Path

_OUTGOING = Path("/proc/sys/net/ipv4/ip_local_port_range")
# Below the ports that Linux gives to outgoing connections, and above the usual listeners.
_LOWEST, _USUAL_OUTGOING = 20_000, 32_768
_TRIES = 100


def free_port(host: str = "127.0.0.1") -> int:
    """A port on which nothing listens, and which the kernel gives to no connection meanwhile.

    The kernel's own choice (port 0) may also go to the next outgoing connection: on a busy machine
    that happens before a program has started and listens.
    """
    for port in (*random.sample(range(_LOWEST, _end()), _TRIES), 0):
        with contextlib.suppress(OSError):
            return _bound(host, port)
    raise OSError(f"No port is free on {host}.")


def _end() -> int:
    try:
        outgoing = int(_OUTGOING.read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return _USUAL_OUTGOING
    # A machine whose connections begin lower has no such range.
    return outgoing if outgoing >= _LOWEST + _TRIES else _USUAL_OUTGOING


def _bound(host: str, port: int) -> int:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # As servers do: lingering connections of an earlier listener do not count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((host, port))
        chosen: int = probe.getsockname()[1]
        return chosen
