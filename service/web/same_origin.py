"""Keeps other pages away from the ops plane, whatever they have a browser send."""

from __future__ import annotations

from flask import request

from service.errors import Forbidden


def require_same_origin(hosts: frozenset[str]) -> None:
    """Raise Forbidden for a name that is not ours, or a write that another page sends."""
    name = request.host.rpartition(":")[0] if _has_port(request.host) else request.host
    if name.lower().strip("[]") not in hosts:
        raise Forbidden("This name is not one of the ops plane's: see HOLDFAST_OPS_HOSTS.")
    if request.method in ("GET", "HEAD"):
        return
    origin = request.headers.get("Origin")
    site = request.headers.get("Sec-Fetch-Site", "same-origin")
    if origin not in (None, request.host_url.rstrip("/")) or site not in ("same-origin", "none"):
        raise Forbidden("Writes are taken from the console's own pages only.")


def _has_port(host: str) -> bool:
    return ":" in host and not host.endswith("]")
