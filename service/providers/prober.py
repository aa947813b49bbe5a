"""Probes a provider that is down, so that payments are sent again as soon as it is back."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from service.resilience.deadline import Deadline

log = logging.getLogger(__name__)

# The breaker decides when a probe is due; the check only reads shared memory.
ASK_EVERY_S = 0.25
PROBE_TIMEOUT_S = 5.0


class Prober:
    """A thread of one worker: its host may have no reconciler that would probe for it.

    The breaker lets one probe a host through, for any number of workers.
    """

    def __init__(self, probe: Callable[[Deadline], bool]) -> None:
        """`probe` moves no money, and costs almost nothing while no probe is due."""
        self._probe = probe

    def start(self) -> None:
        """Probe until the process ends."""
        threading.Thread(target=self._run, name="prober", daemon=True).start()

    def _run(self) -> None:
        never = threading.Event()
        while not never.wait(ASK_EVERY_S):
            try:
                self._probe(Deadline.after(PROBE_TIMEOUT_S))
            # A failed probe must not end the thread.
            except Exception:
                log.exception("provider.probe_failed")
