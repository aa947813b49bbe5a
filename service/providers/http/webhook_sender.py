"""Posts to addresses that merchants gave us: checked, resolved once, without redirects."""

from __future__ import annotations

import re
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

import urllib3
from requests.utils import DEFAULT_CA_BUNDLE_PATH

from service.providers.http.connections import Exchange, pool_for
from service.providers.http.public_addresses import address_of, is_public
from service.providers.http.resolver import Resolver
from service.providers.http.retry_after import parse_retry_after_s
from service.providers.http.transport import NotSent, causes_of, failure_of, verifying_context
from service.resilience.deadline import Deadline
from service.resilience.watchdog import Watchdog

CONNECT_TIMEOUT_S = 2.0
URL_LENGTH_MAX = 2048
# Ports below 1024 have services that a forged request could reach: mail, SSH, directories.
_WEB_PORT = 443
_FIRST_FREE_PORT = 1024
_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_HOST = re.compile(rf"{_LABEL}(?:\.{_LABEL})*", re.IGNORECASE)
# A name or an IPv4 address, or an IPv6 address in brackets, and the port. Any other text could be
# parsed in another way by the library that connects.
_WHERE = re.compile(r"(?:[a-z0-9.-]+|\[[0-9a-f:.]+\])(?::[0-9]*)?", re.IGNORECASE)
# 127.1, 0177.0.0.1, 0x7f.1, 2130706433: resolvers read such text as addresses.
_NUMBER = re.compile(r"(?:.*\.)?(?:0x[0-9a-f]*|[0-9]+)\.?", re.IGNORECASE)


# We follow Retry-After with these statuses (RFC 9110, section 15.6.4; RFC 6585, section 4).
_ASKS_FOR_PATIENCE = frozenset({429, 503})
# The longest pause of the delivery schedule: a receiver cannot postpone its events without end.
RETRY_AFTER_MAX_S = 86_400.0


@dataclass(frozen=True, slots=True)
class Receipt:
    """A receiver's final answer, and the pause that it asks for."""

    status: int
    retry_after_s: float | None = None


class AddressRefused(socket.gaierror):
    """The name resolves to an address that we do not call."""


class WebhookSender:
    """Sends each POST on its own connection. Thread-safe; create it after the fork."""

    def __init__(
        self, *, watchdog: Watchdog, allow_private: bool, ca_file: Path | str | None = None
    ) -> None:
        self._watchdog = watchdog
        self._allow_private = allow_private
        self._resolver = _CheckedResolver(allow_private=allow_private)
        self._tls = verifying_context(str(ca_file or DEFAULT_CA_BUNDLE_PATH))

    def post(self, url: str, body: bytes, headers: dict[str, str], deadline: Deadline) -> Receipt:
        """Send the body once and return the final answer, without the answer's body.

        It ends by `deadline`. The name is resolved once and the connection goes to the same address
        that was checked; TLS and Host keep the name. A redirect is an answer like any other. It
        raises TransportError; its `kind` is the reason for the missing answer.
        """
        reason = refusal_of(url, allow_private=self._allow_private)
        if reason is not None:
            raise NotSent("address_refused", reason)
        where = urlsplit(url)
        exchange = Exchange(
            deadline,
            connect_timeout_s=CONNECT_TIMEOUT_S,
            watchdog=self._watchdog,
            resolver=self._resolver,
        )
        pool = pool_for(
            f"{where.scheme}://{where.netloc}",
            max_connections=1,
            ssl_context=self._tls if where.scheme == "https" else None,
            proxy_url=None,
            proxy_headers={},
        )
        pool.begin(exchange)
        try:
            response = pool.urlopen(
                "POST",
                _target(where),
                body=body,
                headers={"User-Agent": "Holdfast-Webhooks", **headers},
                redirect=False,
                retries=False,
                preload_content=False,
            )
            response.close()
            # A truncated head looks like a whole one.
            if exchange.cut_short or deadline.expired:
                raise TimeoutError("The answer came after its deadline")
        except (urllib3.exceptions.HTTPError, OSError) as error:
            refused = next((e for e in causes_of(error) if isinstance(e, AddressRefused)), None)
            if refused is not None:
                raise NotSent("address_refused", str(refused)) from error
            raise failure_of(error, exchange) from error
        finally:
            exchange.release()
            pool.close()
        return _receipt_of(response)


def _receipt_of(response: urllib3.BaseHTTPResponse) -> Receipt:
    if response.status not in _ASKS_FOR_PATIENCE:
        return Receipt(response.status)
    asked_s = parse_retry_after_s(
        response.headers.get("Retry-After"), now_s=time.time(), longest_s=RETRY_AFTER_MAX_S
    )
    return Receipt(response.status, asked_s)


def refusal_of(url: str, *, allow_private: bool) -> str | None:
    """The reason why an address is never called; None: it may be, if its name resolves well."""
    if len(url) > URL_LENGTH_MAX or not url.isascii() or not url.isprintable() or " " in url:
        return f"must be at most {URL_LENGTH_MAX} visible ASCII characters"
    try:
        where = urlsplit(url)
        port = where.port
    except ValueError:
        return "must be an address like https://example.com/webhooks"
    if where.scheme != "https" and not (allow_private and where.scheme == "http"):
        return "must begin with https://"
    if where.username is not None or where.password is not None or where.fragment:
        return "must hold no user, password or fragment"
    host = where.hostname or ""
    address = address_of(host)
    is_name = _HOST.fullmatch(host) is not None and not _NUMBER.fullmatch(host)
    if not _WHERE.fullmatch(where.netloc) or (address is None and not is_name):
        return "must name a host like example.com"
    if allow_private:
        return None
    if port is not None and port != _WEB_PORT and port < _FIRST_FREE_PORT:
        return "must use port 443, or one from 1024 on"
    if address is not None and not is_public(address):
        return "must be an address on the public internet"
    return None


class _CheckedResolver(Resolver):
    """Resolves only names without a private address."""

    def __init__(self, *, allow_private: bool) -> None:
        super().__init__()
        self._allow_private = allow_private

    def addresses(self, host: str, deadline: Deadline) -> list[str]:
        """Like Resolver's; raises AddressRefused where one of the addresses is not public."""
        found = super().addresses(host, deadline)
        # One private address among public ones is no accident: refuse the name.
        if not self._allow_private and not all(
            (address := address_of(text)) is not None and is_public(address) for text in found
        ):
            raise AddressRefused(socket.EAI_NONAME, "The name leads to a private address")
        return found


def _target(where: SplitResult) -> str:
    return (where.path or "/") + (f"?{where.query}" if where.query else "")
