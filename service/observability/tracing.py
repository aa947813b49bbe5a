"""Propagates trace ids: from `traceparent` into every log event and on to the provider.

It needs no library and costs almost nothing. OpenTelemetry makes the spans, see `spans.py`;
while they are on, its ids are used here.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass

from service.observability import logs

# https://www.w3.org/TR/trace-context/: a later version may add fields after another dash.
_TRACEPARENT = re.compile(
    r"(?!ff)(?P<version>[0-9a-f]{2})-(?P<trace>(?!0{32})[0-9a-f]{32})"
    r"-(?P<span>(?!0{16})[0-9a-f]{16})-(?P<flags>[0-9a-f]{2})(?P<more>-.*)?"
)
_SAMPLED = 0x01
# A longer header is no traceparent and is not parsed.
_LENGTH_LIMIT = 256


@dataclass(frozen=True, slots=True)
class Trace:
    """A position in a trace: its id, our span's id, and whether the trace is sampled."""

    trace_id: str
    span_id: str
    is_sampled: bool

    @classmethod
    def parse(cls, traceparent: str | None) -> Trace | None:
        """The caller's position in its trace; None for anything but a valid header."""
        if not traceparent or len(traceparent) > _LENGTH_LIMIT:
            return None
        match = _TRACEPARENT.fullmatch(traceparent.strip())
        if match is None or (match["version"] == "00" and match["more"]):
            return None
        return cls(match["trace"], match["span"], bool(int(match["flags"], 16) & _SAMPLED))

    @classmethod
    def begin(cls) -> Trace:
        """A trace that begins here; not sampled."""
        return cls(os.urandom(16).hex(), os.urandom(8).hex(), is_sampled=False)

    def child(self) -> Trace:
        """The next step of the same trace."""
        return Trace(self.trace_id, os.urandom(8).hex(), self.is_sampled)

    @property
    def traceparent(self) -> str:
        """The header that makes the receiver's work part of this trace."""
        return f"00-{self.trace_id}-{self.span_id}-{int(self.is_sampled):02x}"


_current: ContextVar[Trace | None] = ContextVar("trace", default=None)


@contextlib.contextmanager
def continue_trace(traceparent: str | None) -> Iterator[Trace]:
    """Run the block as a step of the caller's trace, or of a new one; events carry its ids."""
    theirs = Trace.parse(traceparent)
    trace = theirs.child() if theirs is not None else Trace.begin()
    token = _current.set(trace)
    try:
        with logs.bind(trace_id=trace.trace_id, span_id=trace.span_id):
            yield trace
    finally:
        _current.reset(token)


def adopt(trace: Trace) -> None:
    """Use these ids for the rest of the block that `continue_trace` began."""
    _current.set(trace)
    logs.rebind(trace_id=trace.trace_id, span_id=trace.span_id)


def outgoing_traceparent() -> str | None:
    """The header for a call made now, None outside of any trace."""
    trace = _current.get()
    return trace.traceparent if trace is not None else None


def exemplar() -> dict[str, str] | None:
    """The label that links a histogram's bucket to this trace: `observe(s, exemplar())`."""
    trace = _current.get()
    return {"trace_id": trace.trace_id} if trace is not None else None
