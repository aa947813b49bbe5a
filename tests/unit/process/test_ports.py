"""A port for a program that starts later: free, and out of reach of outgoing connections."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from service.process import ports
from service.process.ports import free_port


def test_port_is_none_that_a_connection_may_get() -> None:
    outgoing = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])

    chosen = [free_port() for _ in range(200)]

    assert all(20_000 <= port < outgoing for port in chosen)
    assert len(set(chosen)) > 150


def test_port_of_a_listener_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        taken = listener.getsockname()[1]
        monkeypatch.setattr(ports.random, "sample", lambda *_: [taken])

        assert free_port() not in (0, taken)


@pytest.mark.parametrize("text", ["", "x y", "1024\t60999"])
def test_odd_range_of_connections_leaves_the_usual_one(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = tmp_path / "ip_local_port_range"
    odd.write_text(text)
    monkeypatch.setattr(ports, "_OUTGOING", odd)

    assert 20_000 <= free_port() < 32_768
