"""Asks a provider that is down for signs of life, so that payments go out again once it is back."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from service.resilience.deadline import Deadline

log = logging.getLogger(__name__)

# The breaker says when a probe is due; asking it costs a look at shared memory.
ASK_EVERY_S = 0.25
PROBE_TIMEOUT_S = 5.0


class Prober:
    """A thread for one worker, whose host may have no reconciler that would probe for it.

    The breaker lets one probe a host through, however many workers ask.
    """

    def __init__(self, probe: Callable[[Deadline], bool]) -> None:
        """`probe` moves no money, and costs nothing while none is due."""
        self._probe = probe

    def start(self) -> None:
        """Ask until the process ends."""
        threading.Thread(target=self._run, name="prober", daemon=True).start()

    def _run(self) -> None:
        never = threading.Event()
        while not never.wait(ASK_EVERY_S):
            try:
                self._probe(Deadline.after(PROBE_TIMEOUT_S))
            # One probe that failed must not be the last one.
            except Exception:
                log.exception("provider.probe_failed")
