"""The three errors of the incident: the fault that causes each, and the alerts that must page."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Incident:
    """A fault on one of the service's links, and its symptoms for an operator."""

    title: str
    # The log text of the original incident.
    words: str
    # Link and mode as the fault proxy names them.
    link: str
    mode: str
    what_happens: str
    # One of them is enough: an alert may be inhibited by another that names the cause.
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
