"""One HTTP exchange with a provider: by its deadline it has a whole answer, or a named doubt."""

from __future__ import annotations

import http.client
import ssl
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any
from urllib.parse import urlencode, urlsplit

import requests
import urllib3
from requests.adapters import HTTPAdapter
from requests.structures import CaseInsensitiveDict
from requests.utils import DEFAULT_CA_BUNDLE_PATH
from urllib3.exceptions import (
    ConnectTimeoutError,
    InvalidHeader,
    NameResolutionError,
    NewConnectionError,
    ProtocolError,
    ReadTimeoutError,
)
from urllib3.util.ssl_ import create_urllib3_context

from service.observability import tracing
from service.providers.http.connections import Exchange, Phase, pool_for
from service.providers.http.resolver import Resolver
from service.resilience.deadline import Deadline
from service.resilience.watchdog import Watchdog

# Larger than any honest answer (a page of 100 charges is about 150 KiB), small enough for memory.
ANSWER_BYTES_MAX = 256 * 1024
PIECE_BYTES = 64 * 1024

# The connection was lost or never opened, for another reason than a slow provider.
LOST_KINDS = frozenset({"refused", "dns", "connect_timeout", "tls", "reset", "truncated"})


class TransportError(Exception):
    """The exchange ended without a whole answer. `kind` is a word of `Outcome.error`."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(f"{kind}: {detail}")
        self.kind = kind
        self.detail = detail


class NotSent(TransportError):
    """Certainly no byte of the request reached the provider."""


class SentUnknown(TransportError):
    """The provider may have acted on the request; its answer is missing."""


class ConnectionError(Exception):
    """The incident's own error name, which people search for; the real errors have many classes."""


@dataclass(frozen=True, slots=True)
class ProviderAnswer:
    """A whole answer of the provider, with any status. Header names are case-insensitive."""

    status: int
    body: bytes
    headers: Mapping[str, str]
    ms: int


class Transport:
    """Exchanges with one provider, over a pool of connections. Thread-safe.

    It follows no redirects, keeps no cookies, ignores the environment's proxies and CA bundles, and
    never sends a request twice. Create it after the fork.
    """

    def __init__(
        self,
        *,
        base_url: str,
        ca_file: Path | str | None,
        connect_timeout_s: float,
        max_connections: int,
        watchdog: Watchdog,
        proxy_url: str | None = None,
    ) -> None:
        url = urlsplit(base_url)
        if url.scheme != "https" and proxy_url is not None:
            raise ValueError("A proxy is only used for https: without TLS it could read the money.")
        self._base_url = base_url.rstrip("/")
        # Always given explicitly: without it, requests would let the environment replace it.
        self._ca_file = str(ca_file or DEFAULT_CA_BUNDLE_PATH)
        self._connect_timeout_s = connect_timeout_s
        self._watchdog = watchdog
        self._resolver = Resolver()
        self._adapter = _OneHostAdapter()
        self._pool = pool_for(
            self._base_url,
            max_connections=max_connections,
            ssl_context=verifying_context(self._ca_file) if url.scheme == "https" else None,
            proxy_url=proxy_url,
            proxy_headers=self._adapter.proxy_headers(proxy_url) if proxy_url else {},
        )
        self._adapter.pool = self._pool

    def exchange(
        self,
        method: str,
        path: str,
        *,
        form: Mapping[str, str] | None = None,
        headers: Mapping[str, str],
        deadline: Deadline,
    ) -> ProviderAnswer:
        """Send one request and read the whole answer, of any status.

        It ends by `deadline` under any fault of the network or the provider. It raises NotSent where
        certainly no byte reached the provider, and SentUnknown for every other exchange without a
        whole answer in time.
        """
        if deadline.expired:
            raise NotSent("deadline", "The time was spent before the request was sent")
        exchange = Exchange(
            deadline,
            connect_timeout_s=self._connect_timeout_s,
            watchdog=self._watchdog,
            resolver=self._resolver,
        )
        began_s = monotonic()
        self._pool.begin(exchange)
        try:
            response = self._adapter.send(
                self._prepared(method, path, form, headers),
                stream=True,
                timeout=(self._connect_timeout_s, _shown_s(deadline)),
                verify=self._ca_file,
            )
            body = _read(response.raw, deadline)
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
            failure = failure_of(error, exchange)
            if failure.kind == "timeout":
                timed_out = self._read_timeout(path, error, deadline)
                raise SentUnknown("timeout", str(timed_out)) from timed_out
            raise failure from self._named(failure, error)
        finally:
            exchange.release()
        ms = round((monotonic() - began_s) * 1000)
        return ProviderAnswer(response.status_code, body, response.headers, ms)

    def close(self) -> None:
        """Close the kept connections."""
        self._pool.close()

    def _prepared(
        self, method: str, path: str, form: Mapping[str, str] | None, headers: Mapping[str, str]
    ) -> requests.PreparedRequest:
        # Filled in directly: the preparation of requests costs a fifth of the whole exchange.
        request = requests.PreparedRequest()
        request.method = method
        request.url = self._base_url + path
        request.headers = CaseInsensitiveDict({"Accept-Encoding": "identity", **headers})
        traceparent = tracing.outgoing_traceparent()
        if traceparent is not None:
            request.headers["traceparent"] = traceparent
        if form is not None:
            request.body = urlencode(form).encode("ascii")
            request.headers["Content-Type"] = "application/x-www-form-urlencoded"
            request.headers["Content-Length"] = str(len(request.body))
        return request

    def _read_timeout(self, path: str, error: Exception, deadline: Deadline) -> Exception:
        """The ReadTimeout of requests, with the same text in each case: the socket's timeout, the
        watchdog or our own check of the clock ended the exchange."""
        words = f"Read timed out. (read timeout={_shown_s(deadline)})"
        timed_out = requests.ReadTimeout(ReadTimeoutError(self._pool, path, words))
        if isinstance(error, requests.ReadTimeout) and str(error) == str(timed_out):
            return error
        timed_out.__cause__ = error
        return timed_out

    def _named(self, failure: TransportError, error: Exception) -> Exception:
        """A lost connection under the name that people search their logs for; other errors unchanged."""
        if failure.kind not in LOST_KINDS:
            return error
        named = ConnectionError(f"{type(self._pool).__name__} timeout")
        named.__cause__ = error
        return named


class _OneHostAdapter(HTTPAdapter):
    """The adapter of requests on our own pool: its TLS context always verifies."""

    pool: Any

    def __init__(self) -> None:
        super().__init__(max_retries=0, pool_block=False)

    def get_connection_with_tls_context(self, *args: Any, **kwargs: Any) -> Any:
        return self.pool

    def build_response(self, req: Any, resp: Any) -> requests.Response:
        """A minimal response: no cookies are kept, and `_read` reads the body."""
        response = requests.Response()
        response.status_code = resp.status
        response.headers = resp.headers
        response.raw = resp
        return response

    def cert_verify(self, *args: Any, **kwargs: Any) -> None:
        """Set nothing: the pool's context was made with the CA file, once for all connections."""


class _AnswerRefused(ProtocolError):
    """We do not accept this answer; `kind` is the reason."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(detail)
        self.kind = kind


def verifying_context(ca_file: str) -> ssl.SSLContext:
    """A TLS context that trusts only that file and always checks names."""
    context = create_urllib3_context(cert_reqs=ssl.CERT_REQUIRED)
    context.load_verify_locations(cafile=ca_file)
    return context


def _shown_s(deadline: Deadline) -> float:
    """The budget as people set it ("read timeout=5"); the sockets get the rest of it."""
    budget_s = deadline.budget_s or deadline.remaining_s()
    return int(budget_s) if budget_s == int(budget_s) else budget_s


def _read(raw: urllib3.HTTPResponse, deadline: Deadline) -> bytes:
    """The whole body, within the size limit and the deadline; else the connection is closed."""
    body = bytearray()
    try:
        # A truncated header block has neither of these.
        if raw.length_remaining is None and not raw.chunked:
            raise _AnswerRefused("truncated", "The answer does not say where it ends")
        if (raw.length_remaining or 0) > ANSWER_BYTES_MAX:
            raise _AnswerRefused("too_large", f"The answer has {raw.length_remaining} bytes")
        while piece := raw.read(PIECE_BYTES, decode_content=False):
            body += piece
            if len(body) > ANSWER_BYTES_MAX:
                raise _AnswerRefused("too_large", f"The answer has over {ANSWER_BYTES_MAX} bytes")
            if deadline.expired:
                break
        if deadline.expired:
            raise _AnswerRefused("timeout", "The answer came after its deadline")
    except BaseException:
        raw.close()
        raise
    finally:
        raw.release_conn()
    return bytes(body)


def failure_of(error: Exception, exchange: Exchange) -> TransportError:
    """Classify an error: a whitelist of causes is NotSent; every other cause is doubt."""
    causes = list(causes_of(error))

    def has(*kinds: type[BaseException]) -> bool:
        return any(isinstance(cause, kinds) for cause in causes)

    detail = str(error)
    if exchange.phase is Phase.CONNECTING:
        if has(NameResolutionError):
            return NotSent("dns", detail)
        if has(NewConnectionError):
            return NotSent("refused", detail)
        if has(ConnectTimeoutError):
            return NotSent("connect_timeout", detail)
    if exchange.tunnel_refused:
        return NotSent("refused", detail)
    if exchange.phase is Phase.HANDSHAKING and has(ssl.SSLCertVerificationError):
        return NotSent("tls", detail)

    # Includes a stalled handshake: the protocol's whitelist is shorter than the provable cases.
    if exchange.cut_short or exchange.deadline.expired or has(TimeoutError):
        return SentUnknown("timeout", detail)
    if isinstance(error, _AnswerRefused):
        return SentUnknown(error.kind, detail)
    if exchange.phase is Phase.HANDSHAKING:
        return SentUnknown("tls", detail)
    if has(ConnectionResetError, ConnectionAbortedError, BrokenPipeError, ssl.SSLError):
        return SentUnknown("reset", detail)
    if has(http.client.IncompleteRead):
        return SentUnknown("truncated", detail)
    if has(http.client.HTTPException, InvalidHeader):
        return SentUnknown("garbage", detail)
    return SentUnknown("reset", detail)


def causes_of(error: BaseException) -> Iterator[BaseException]:
    """The error and its chain of causes, outermost first."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)
