"""The three errors of the incident, as they are made to happen, and who must be woken by each."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Incident:
    """A fault on one of the service's links, and what an operator sees of it."""

    title: str
    # What the log said when it happened for the first time.
    words: str
    # For the fault proxy.
    link: str
    mode: str
    what_happens: str
    # One of them is enough: an alert may stay silent because another names the cause.
    pages: frozenset[str]
    look: str


INCIDENTS = (
    Incident(
        title="Provider timeout",
        words="Payment service connection failed - timeout after 5000ms",
        link="provider",
        mode="stall",
        what_happens="the provider takes every call and answers none",
        pages=frozenset({"ProviderTimeouts", "BreakerOpen"}),
        look="column 1: the calls' time rises to the deadline, then the breaker opens and 202s are stored",
    ),
    Incident(
        title="HTTPS connection error",
        words="ConnectionError: HTTPSConnectionPool timeout",
        link="provider",
        mode="reset",
        what_happens="connections to the provider break when the answer begins",
        pages=frozenset({"ProviderConnectionErrors", "BreakerOpen"}),
        look="column 2: `reset` by the second, the breaker's red, what was not sent",
    ),
    Incident(
        title="Connection pool exhausted",
        words="Database query failed: connection pool exhausted",
        link="database",
        mode="stall",
        what_happens="the database takes statements and answers none",
        pages=frozenset({"PoolTimeouts", "PaymentsRefused"}),
        look="column 3: connections in use up to the size, waits up to 0.5 s, then truthful 503s",
    ),
)
