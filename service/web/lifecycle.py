"""Whether this instance is stopping: one byte that the gunicorn master shares with its workers.

A worker that is only replaced (HUP, max_requests) is told to end by the same signal, and must not
say that the instance is going away; so the master writes down which of the two it is.
"""

from __future__ import annotations

import mmap

# Made when the master imports this module, before it forks: the workers see the same memory.
_stopping = mmap.mmap(-1, 1)


def begin_stop() -> None:
    """Tell every process of the instance; safe in a signal handler."""
    _stopping[0] = 1


def is_stopping() -> bool:
    """True from the moment the instance was told to stop: /readyz is 503 before anything closes."""
    return _stopping[0] == 1
