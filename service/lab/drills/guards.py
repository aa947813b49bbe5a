"""Checks each second whether a drill hurts real payments, and returns the abort reason if so."""

from __future__ import annotations

from service.lab.drills.expectations import Samples
from service.lab.drills.load import Call
from service.observability.metrics.window import Window

# Real requests since the fault began: fewer prove nothing, and one unlucky caller aborts no drill.
LIVE_REQUESTS_MIN = 20
LIVE_HARMED_MAX = 0.10
_WRITES = {"method": "POST", "route": "/v1/payments"}


def abort_reason(before: Samples, now: Samples, calls: list[Call]) -> str | None:
    """The reason to abort the drill now; None while only the drill's own payments are affected.

    `calls` are the drill's own since `before`; all requests beyond them are real traffic.
    """
    window = Window(before, now, 1.0)
    if window.delta("invariant_violations") > 0:
        return "A promise about money is broken."
    ours = [call for call in calls if call.status is not None]
    answered = window.delta("http_requests_total", **_WRITES) - len(ours)
    if answered < LIVE_REQUESTS_MIN:
        return None
    refused = sum(
        count
        for status, count in window.by("status", "http_requests_total", **_WRITES).items()
        if status >= "500"
    ) - sum((call.status or 0) >= 500 for call in ours)
    in_doubt = window.delta("payments_total", outcome="unknown") - sum(
        call.outcome == "unknown" for call in ours
    )
    for harmed, words in ((refused, "were refused"), (in_doubt, "were left in doubt")):
        if harmed / answered > LIVE_HARMED_MAX:
            return f"{harmed:.0f} of {answered:.0f} real payments {words}."
    return None
