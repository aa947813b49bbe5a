"""The document of one drill, which grows while the drill runs."""

from __future__ import annotations

import contextlib
import copy
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from time import monotonic
from typing import Any

from service.lab.drills.plan import GAME_DAY, Plan
from service.lab.drills.store import moment, new_run_id

SUMMARY_FIELDS = (
    *("id", "kind", "name", "title", "scope", "status", "phase", "verdict", "summary"),
    *("started_at", "ended_at", "reason", "requested_by"),
)
# One line a minute would be enough for an hour; the longest run lasts this many seconds.
TIMELINE_MAX = 900


class Run:
    """The state of a run: its runner writes it, any thread may read it."""

    def __init__(
        self,
        plan: Plan,
        *,
        kind: str,
        scope: str,
        reason: str,
        requested_by: str,
        load_per_s: int,
        is_blind: bool = False,
        day: Run | None = None,
    ) -> None:
        self.id = new_run_id()
        self.plan = plan
        self.scope = scope
        self.began_at = datetime.now(UTC)
        self.began_s = monotonic()
        self.requested_by = requested_by
        self.ended = threading.Event()
        # A game day and its current drill share one stop: stopping either stops both.
        self.stopping: threading.Event = day.stopping if day else threading.Event()
        # The holder of the lease that admits one drill at a time.
        self.lease_id = day.id if day else self.id
        self.stop_reason: str | None = None
        self._lock = threading.Lock()
        self._fault_began_s: float | None = None
        self._fault_until_s: float | None = None
        # A blind fault stays hidden until a correct guess or the end.
        self._hidden = is_blind
        self._document: dict[str, Any] = {
            "id": self.id,
            "kind": kind,
            "name": plan.name,
            "title": plan.title,
            "scope": scope,
            "status": "running",
            "phase": "starting",
            "verdict": None,
            "summary": None,
            "reason": reason,
            "requested_by": requested_by,
            "ttl_s": round(plan.fault_s, 1),
            "load_rps": load_per_s,
            "started_at": moment(self.began_at),
            "fault_began_at": None,
            "fault_ended_at": None,
            "ended_at": None,
            "elapsed_s": 0.0,
            "fault_left_s": None,
            # Each fault with the seconds at which it began and ended; `to_s` None: still active.
            "faults": [],
            "hypothesis": plan.hypothesis,
            "runbook": plan.runbook,
            "progress": [],
            "preflight": [],
            "sides": [],
            "timeline": [],
            "bite": [],
            "expectations": [],
            "invariants": [],
            "parts": [],
            # The guesses at the fault of a blind game day; None: the run is not blind.
            "answers": [] if is_blind else None,
        }

    @property
    def at_s(self) -> float:
        """Seconds since it began."""
        return round(monotonic() - self.began_s, 2)

    def set(self, **fields: Any) -> None:
        with self._lock:
            self._document.update(fields)

    def enter(self, phase: str, text: str) -> None:
        """Begin a phase, and record a line about it."""
        with self._lock:
            self._document["phase"] = phase
        self.tell(text)

    def tell(self, text: str) -> None:
        with self._lock:
            step = {"at_s": self.at_s, "phase": self._document["phase"], "text": text}
            self._document["progress"].append(step)

    @contextlib.contextmanager
    def fault(self, text: str) -> Iterator[None]:
        """One fault is active for the duration of the block."""
        fault = {"text": text, "from_s": self.at_s, "to_s": None}
        with self._lock:
            self._document["faults"].append(fault)
        try:
            yield
        finally:
            with self._lock:
                fault["to_s"] = self.at_s

    def begin_fault(self, seconds: float) -> None:
        with self._lock:
            self._fault_began_s = monotonic()
            self._fault_until_s = self._fault_began_s + seconds
            self._document["fault_began_at"] = moment(datetime.now(UTC))

    def end_fault(self) -> None:
        with self._lock:
            if self._fault_until_s is not None and self._document["fault_ended_at"] is None:
                self._document["fault_ended_at"] = moment(datetime.now(UTC))
            self._fault_until_s = None

    def add_second(self, point: dict[str, Any]) -> None:
        with self._lock:
            point["phase"] = self._document["phase"]
            if len(self._document["timeline"]) < TIMELINE_MAX:
                self._document["timeline"].append(point)

    def stop(self, reason: str) -> None:
        """Ask the run to end; faults are cleared, and payments already sent are settled."""
        self.stop_reason = self.stop_reason or reason
        self.stopping.set()

    def finish(self, verdict: str, summary: str) -> None:
        with self._lock:
            self._hidden = False
            self._document |= {
                "status": "ended",
                "phase": "ended",
                "verdict": verdict,
                "summary": summary + _named(self._document["answers"]),
                "ended_at": moment(datetime.now(UTC)),
                "elapsed_s": self.at_s,
                "fault_left_s": None,
            }

    def answer(self, name: str) -> dict[str, Any]:
        """Record a guess at the fault of a blind game day; the first correct guess reveals it."""
        answer = {"name": name, "right": name == self.plan.name, "after_s": None}
        with self._lock:
            if self._fault_began_s is not None:
                answer["after_s"] = round(monotonic() - self._fault_began_s, 1)
            self._document["answers"].append(answer)
            if answer["right"]:
                self._hidden = False
        self.tell(f"Somebody named {name}: {'right' if answer['right'] else 'wrong'}")
        return answer

    @property
    def is_hidden(self) -> bool:
        return self._hidden

    @property
    def phase(self) -> str:
        return str(self._document["phase"])

    def document(self) -> dict[str, Any]:
        """The document as of now, without the secrets of a blind game day."""
        return _hide(self.whole()) if self._hidden else self.whole()

    def whole(self) -> dict[str, Any]:
        """The complete document, for readers inside the service."""
        with self._lock:
            document = copy.deepcopy(self._document)
            if document["status"] == "running":
                document["elapsed_s"] = self.at_s
                if self._fault_until_s is not None:
                    left_s = max(0.0, self._fault_until_s - monotonic())
                    document["fault_left_s"] = round(left_s, 1)
        return document

    def summary(self) -> dict[str, Any]:
        return summary_of(self.document())


def _named(answers: list[dict[str, Any]] | None) -> str:
    """The guesses of a blind game day as a sentence."""
    if answers is None:
        return ""
    right = next((answer for answer in answers if answer["right"]), None)
    wrong = f", {sum(not one['right'] for one in answers)} wrong answers" if answers else ""
    if right is None:
        return f" The fault was not named{wrong}."
    after_s = right["after_s"]
    when = "before it began" if after_s is None else f"{after_s:g} s after it began"
    return f" Named {when}{wrong}."


def summary_of(document: dict[str, Any]) -> dict[str, Any]:
    """The fields of a run that a list shows."""
    return {name: document.get(name) for name in SUMMARY_FIELDS}


def _hide(document: dict[str, Any]) -> dict[str, Any]:
    """Hide every field of a blind game day that names the fault, its length and load too."""
    document |= {"name": GAME_DAY, "title": "A blind game day"}
    document |= dict.fromkeys(("runbook", "ttl_s", "load_rps", "fault_left_s"))
    document |= {name: [] for name in ("bite", "expectations", "preflight", "faults", "sides")}
    document["hypothesis"] = "One fault is injected on purpose: find it, and name it."
    document["answers"] = [{**answer, "right": False} for answer in document["answers"]]
    # Keep the number of lines, for readers that continue at an offset.
    document["progress"] = [{**step, "text": "(hidden)"} for step in document["progress"]]
    for point in document["timeline"]:
        for side in point["sides"].values():
            del side["struck"]
    return document
