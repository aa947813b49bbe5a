"""Checks whether an address is free to listen on, and names the program that has it otherwise."""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path

from service.settings import SettingsError


def require_free(env: str, bind: str) -> None:
    """Raise SettingsError with the setting and the listening program unless the address is free."""
    host, _, port = bind.rpartition(":")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # As gunicorn does: lingering connections of an earlier run do not count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host.strip("[]"), int(port)))
            return
        except OSError as error:
            reason = error.strerror
    listener = _listener(int(port))
    who = f"{listener} listens there" if listener else reason
    raise SettingsError(f"{bind} cannot be used ({who}): set {env} to another host:port.")


def free_bind(port: int = 0) -> str:
    """host:port on loopback: this port, or any free one where this port is taken."""
    for wanted in (port, 0):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", wanted))
            return f"127.0.0.1:{probe.getsockname()[1]}"
    raise SettingsError("No port is free on this machine.")


def _listener(port: int) -> str | None:
    """The program that listens on `port`, as far as this user may see it (Linux)."""
    inodes = {f"socket:[{inode}]" for inode in _listening_inodes(port)}
    for fd in Path("/proc").glob("[0-9]*/fd/*") if inodes else ():
        try:
            if str(fd.readlink()) in inodes:
                process = fd.parent.parent
                return f"{(process / 'comm').read_text().strip()} (process {process.name})"
        except OSError:
            continue
    return None


def _listening_inodes(port: int) -> list[str]:
    inodes = []
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            lines = Path(table).read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            words = line.split()
            # The local address ends in the port, in hexadecimal; state 0A is LISTEN.
            if words[1].endswith(f":{port:04X}") and words[3] == "0A":
                inodes.append(words[9])
    return inodes
