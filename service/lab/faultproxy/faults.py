"""The faults on a link, as orders on the control socket state them. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

# Longer than any drill needs; a forgotten fault must end by itself.
TTL_MAX_S = 300.0
# The interval of a fault holder's heartbeats; after three missing heartbeats all its faults end.
BEAT_EVERY_S = 1.0
BEATS_MISSED_MAX = 3
# One byte or one round trip may not be delayed longer than a whole fault lasts.
PAUSE_MAX_MS = 60_000.0


class Mode(StrEnum):
    """The ways in which a network fails a caller."""

    REFUSE = "refuse"  # No connection can be made, existing ones break.
    CONNECT_TIMEOUT = "connect_timeout"  # The accept queue is full: a connect is never answered.
    STALL = "stall"  # Connections are made, but answers never arrive.
    RESET = "reset"  # A connection breaks when the answer to its request begins.
    DRIP = "drip"  # Answers arrive one byte at a time.
    LATENCY = "latency"  # Each answer arrives later.


class BadOrder(ValueError):
    """The order cannot be executed; the text gives the reason."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault on one link."""

    link: str
    mode: Mode
    ttl_s: float
    # The pause between two bytes of a drip, or the delay added to each answer.
    pause_ms: float = 100.0


def read_fault(order: Mapping[str, Any], links: Mapping[str, Any]) -> Fault:
    """The fault that an order requests; raises BadOrder."""
    link, mode = order.get("link"), order.get("mode")
    if not isinstance(link, str) or link not in links:
        raise BadOrder(f"link must be one of {', '.join(links)}")
    if not isinstance(mode, str) or mode not in set(Mode):
        raise BadOrder(f"mode must be one of {', '.join(Mode)}")
    return Fault(
        link=link,
        mode=Mode(mode),
        ttl_s=_number(order, "ttl_s", None, TTL_MAX_S),
        pause_ms=_number(order, "pause_ms", 100.0, PAUSE_MAX_MS),
    )


def _number(order: Mapping[str, Any], name: str, default: float | None, most: float) -> float:
    value = order.get(name, default)
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or not 0 < value <= most:
        raise BadOrder(f"{name} must be a number above 0 and at most {most:g}")
    return float(value)
