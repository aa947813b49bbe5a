"""Log events of a failing provider, with the exact text that people searched for in the incident."""

from __future__ import annotations

import logging

from service.providers.http.transport import LOST_KINDS, TransportError, causes_of
from service.resilience.deadline import Deadline

log = logging.getLogger(__name__)

# A longer chain is a loop; a longer text is an error page of another system.
CHAIN_LENGTH_MAX = 8
TEXT_LENGTH_MAX = 300

CONNECTION_LOST = "... in process_payment: ConnectionError: HTTPSConnectionPool timeout"


def report(provider: str, operation: str, failure: TransportError, deadline: Deadline) -> None:
    """Log one exchange without a whole answer, with its chain of causes."""
    if failure.kind == "timeout":
        incident = (
            f"Payment service connection failed - timeout after {deadline.budget_s * 1000:.0f}ms"
        )
        event = "provider.timeout"
    elif failure.kind in LOST_KINDS:
        incident, event = CONNECTION_LOST, "provider.connection_error"
    elif failure.kind == "deadline":
        return  # Not the provider's fault: our own time was spent before the call.
    else:
        incident, event = None, "provider.bad_answer"
    chain = [_described(cause) for cause in causes_of(failure)][1 : CHAIN_LENGTH_MAX + 1]
    log.error(
        event,
        extra={
            "provider": provider,
            "operation": operation,
            "error": failure.kind,
            "incident": incident,
            "error_class": chain[0].partition(":")[0] if chain else type(failure).__name__,
            "error_detail": failure.detail[:TEXT_LENGTH_MAX],
            "error_chain": chain,
        },
    )


def _described(error: BaseException) -> str:
    kind = type(error)
    where = "" if kind.__module__ == "builtins" else f"{kind.__module__}."
    return f"{where}{kind.__qualname__}: {error}"[:TEXT_LENGTH_MAX]
