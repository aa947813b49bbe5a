"""Protects the ops plane from requests that other pages make a browser send."""

from __future__ import annotations

from flask import Flask, request

from service.errors import Forbidden

# Probes and scrapers use any host name, and read data that is worthless to a page.
OPEN_PATHS = frozenset({"/healthz", "/readyz", "/metrics"})


def install(app: Flask, hosts: frozenset[str]) -> None:
    """Check each request of the plane, unmatched paths included, except probes and /metrics."""

    @app.before_request
    def check() -> None:
        if request.path not in OPEN_PATHS:
            require_same_origin(hosts)


def require_same_origin(hosts: frozenset[str]) -> None:
    """Raise Forbidden for a foreign host name, or for a write from another page."""
    name = request.host.rpartition(":")[0] if _has_port(request.host) else request.host
    if name.lower().strip("[]") not in hosts:
        raise Forbidden("The host name is not one of the ops plane's: see HOLDFAST_OPS_HOSTS.")
    if request.method in ("GET", "HEAD"):
        return
    origin = request.headers.get("Origin")
    site = request.headers.get("Sec-Fetch-Site", "same-origin")
    if origin not in (None, request.host_url.rstrip("/")) or site not in ("same-origin", "none"):
        raise Forbidden("Writes are accepted only from the console's own pages.")


def _has_port(host: str) -> bool:
    return ":" in host and not host.endswith("]")
