"""Finds the addresses of a host within a deadline; the system's resolver has no deadline."""

from __future__ import annotations

import ipaddress
import socket
import threading

from service.resilience.deadline import Deadline


class _LookUp:
    """One query to the system's resolver, shared by all callers that wait for its answer."""

    def __init__(self) -> None:
        self.answered = threading.Event()
        self.addresses: list[str] = []
        self.error: OSError | UnicodeError | None = None


class Resolver:
    """Queries in a separate thread, so that a hung name server costs callers only their deadline.

    Callers of the same name share one query: for any number of callers, one thread hangs.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._under_way: dict[str, _LookUp] = {}

    def addresses(self, host: str, deadline: Deadline) -> list[str]:
        """The host's addresses in the resolver's order; raises OSError when there are none in time."""
        if _is_address(host):
            return [host]
        look_up = self._join(host)
        if not look_up.answered.wait(deadline.remaining_s()):
            raise socket.gaierror(socket.EAI_AGAIN, "The name was not resolved in time")
        if look_up.error is not None:
            raise socket.gaierror(socket.EAI_NONAME, str(look_up.error)) from look_up.error
        return look_up.addresses

    def _join(self, host: str) -> _LookUp:
        with self._lock:
            look_up = self._under_way.get(host)
            if look_up is None:
                look_up = self._under_way[host] = _LookUp()
                threading.Thread(
                    target=self._ask, args=(host, look_up), name="resolver", daemon=True
                ).start()
            return look_up

    def _ask(self, host: str, look_up: _LookUp) -> None:
        try:
            found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
            look_up.addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
        except (OSError, UnicodeError) as error:
            look_up.error = error
        finally:
            with self._lock:
                del self._under_way[host]
            look_up.answered.set()


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
