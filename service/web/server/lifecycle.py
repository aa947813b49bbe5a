"""The stopping flag of this instance: one number that the gunicorn master shares with its workers.

The same signal ends a worker that is only replaced (HUP, max_requests), which must not report that
the instance is stopping; so the master records which of the two it is.
"""

from __future__ import annotations

from service.process.shared_page import SharedPage

# Created when the master imports this module, before it forks: the workers share the memory.
_stopping = SharedPage(None, count=1).numbers


def begin_stop() -> None:
    """Set the flag for every process of the instance; safe in a signal handler."""
    _stopping[0] = 1


def is_stopping() -> bool:
    """True from the stop signal on: /readyz is 503 before any connection closes."""
    return _stopping[0] == 1
