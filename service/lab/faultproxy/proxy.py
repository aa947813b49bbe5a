"""The fault proxy: a separate process on the links to the provider and to the database.

The proxy relays bytes without opening TLS, and injects a fault only while a live client asks for it:
a fault belongs to a connection to the control socket, ends at its TTL, when that connection ends,
or after three missing heartbeats, and never survives a restart.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

from service.lab.faultproxy.faults import (
    BEAT_EVERY_S,
    BEATS_MISSED_MAX,
    BadOrder,
    Fault,
    read_fault,
)
from service.lab.faultproxy.link import Address, Link
from service.process.ports import free_port

log = logging.getLogger(__name__)

ORDER_BYTES_MAX = 4096
# The names of the two links, in orders and on the command line.
PROVIDER, DATABASE = "provider", "database"


class FaultProxy:
    """The links and the orders about them. All work happens on one event loop."""

    def __init__(self, links: list[Link], control_path: Path) -> None:
        self._links = {link.name: link for link in links}
        self._control_path = control_path
        self._holder: object | None = None
        self._ends: dict[str, asyncio.TimerHandle] = {}

    async def serve(self, stop: asyncio.Event) -> None:
        """Relay until `stop` is set."""
        for link in self._links.values():
            link.open()
        self._control_path.unlink(missing_ok=True)
        # The directory makes the socket private; its own mode does so too.
        mask = os.umask(0o177)
        try:
            server = await asyncio.start_unix_server(
                self._hold, str(self._control_path), limit=ORDER_BYTES_MAX
            )
        finally:
            os.umask(mask)
        try:
            await stop.wait()
        finally:
            server.close()
            self._clear_all("stopped")
            for link in self._links.values():
                link.close()

    async def _hold(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one client; all its faults end with its connection."""
        holder = object()
        why = "holder_gone"
        try:
            while True:
                line = await self._next_order(reader, holder)
                if not line:
                    break
                answer = self._obey(line, holder)
                # A connection that the order broke is closed in the loop's next iteration; the answer
                # is correct only after that.
                await asyncio.sleep(0)
                writer.write(json.dumps(answer).encode() + b"\n")
                await writer.drain()
        except TimeoutError:
            why = "heartbeats_missed"
        except (OSError, ValueError):
            pass
        finally:
            if self._holder is holder:
                self._clear_all(why)
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _next_order(self, reader: asyncio.StreamReader, holder: object) -> bytes:
        # Half an interval of grace: a late heartbeat is not a missing one.
        silence_s = BEAT_EVERY_S * (BEATS_MISSED_MAX + 0.5)
        while True:
            try:
                return await asyncio.wait_for(reader.readline(), silence_s)
            except TimeoutError:
                if self._holder is holder:
                    raise

    def _obey(self, line: bytes, holder: object) -> dict[str, Any]:
        try:
            order = json.loads(line)
            if not isinstance(order, dict):
                raise BadOrder("an order is a JSON object")
            self._do(order, holder)
        except (BadOrder, ValueError) as error:
            return {"ok": False, "error": str(error), "links": self._describe()}
        return {"ok": True, "links": self._describe()}

    def _do(self, order: dict[str, Any], holder: object) -> None:
        match order.get("do"):
            case "inject":
                fault = read_fault(order, self._links)
                if self._holder not in (None, holder):
                    raise BadOrder("another holder has a fault on these links")
                self._holder = holder
                self._inject(fault)
            case "clear":
                self._clear_all("told")
            case "beat" | "show":
                pass
            case _:
                raise BadOrder("do must be inject, clear, beat or show")

    def _inject(self, fault: Fault) -> None:
        self._end_timer(fault.link)
        self._links[fault.link].inject(fault)
        self._ends[fault.link] = asyncio.get_running_loop().call_later(
            fault.ttl_s, self._clear, fault.link, "ttl"
        )
        log.warning(
            "faultproxy.struck",
            extra={"link": fault.link, "mode": fault.mode.value, "ttl_s": fault.ttl_s},
        )

    def _clear(self, name: str, why: str) -> None:
        self._end_timer(name)
        link = self._links[name]
        if link.fault is not None:
            link.clear()
            log.warning("faultproxy.cleared", extra={"link": name, "why": why})

    def _clear_all(self, why: str) -> None:
        self._holder = None
        for name in self._links:
            self._clear(name, why)

    def _end_timer(self, name: str) -> None:
        timer = self._ends.pop(name, None)
        if timer is not None:
            timer.cancel()

    def _describe(self) -> dict[str, Any]:
        now_s = asyncio.get_running_loop().time()
        return {
            name: {
                "mode": link.fault.mode.value if link.fault else None,
                "ends_in_s": (
                    round(self._ends[name].when() - now_s, 1) if name in self._ends else None
                ),
                "struck": link.injections,
                "connections": link.connections,
            }
            for name, link in self._links.items()
        }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--control", type=Path, required=True, help="path of the control socket")
    for name, target in ((PROVIDER, "host:port"), (DATABASE, "host:port, or a unix socket's path")):
        parser.add_argument(f"--{name}-target", help=f"what the link leads to: {target}")
        parser.add_argument(
            f"--{name}-listen",
            help="host:port, a unix socket's path, or fd:N for an inherited listener",
        )


def run(arguments: argparse.Namespace) -> int:
    """Relay until SIGTERM or SIGINT; the status for the shell."""
    links = []
    for name in (PROVIDER, DATABASE):
        listen = getattr(arguments, f"{name}_listen")
        target = getattr(arguments, f"{name}_target")
        if listen and target:
            links.append(Link(name, _listener(listen), _address(target), is_http=name == PROVIDER))
    if not links:
        print("A link needs both --..-listen and --..-target.", file=sys.stderr)  # noqa: T201
        return 2
    asyncio.run(_serve(FaultProxy(links, arguments.control)))
    return 0


async def _serve(proxy: FaultProxy) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await proxy.serve(stop)


def _address(text: str) -> Address:
    if text.startswith("/"):
        return text
    host, _, port = text.rpartition(":")
    return host.strip("[]"), int(port)


def _listener(text: str) -> socket.socket:
    if text.startswith("fd:"):
        return socket.socket(fileno=int(text.removeprefix("fd:")))
    return listener_at(_address(text))


def listener_at(address: Address) -> socket.socket:
    """A listener bound to `address`: on TCP, or on a unix socket that replaces an existing one."""
    if isinstance(address, str):
        Path(address).unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        mask = os.umask(0o177)
        try:
            listener.bind(address)
        finally:
            os.umask(mask)
    else:
        family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Not the kernel's choice: another may get that port while the listener refuses connections.
        listener.bind((address[0], address[1] or free_port(address[0])))
    # From now on connections queue instead of being refused, even while no proxy accepts them.
    listener.listen(128)
    return listener
