"""Carries out a plan's faults on one side, one after the other, and ends them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic

from service.resilience.deadline import Deadline
from service.simulation.books import Row
from service.simulation.faults import TTL_MAX_S
from service.simulation.load import Load
from service.simulation.lost_commits import CannotLose, LostCommits
from service.simulation.plan import Plan, Step
from service.simulation.run import Run
from service.simulation.sandbox import Sandbox
from service.simulation.sides import Side
from service.simulation.strike import ProxyGone, Striker, StrikeRefused
from service.simulation.webhooks import WebhookDisorder

# The fault ends in the proxy a little later than told here, in case telling fails.
TTL_MARGIN_S = 2.0
# A worker's start is mostly imports: on a machine with other things to do, several times a second's work.
REPLACED_WITHIN_S = 10.0
# Long enough for the proxy to break what is there, too short for a retry to meet a refusal.
BREAK_S = 0.1
# A round of webhooks is to be over within its second.
WEBHOOK_PAYMENTS_MAX = 4


class Aborted(Exception):
    """The rehearsal must end now; the message says why."""


class Inconclusive(Exception):
    """Nothing was proven; the message says what is missing."""


@dataclass(kw_only=True)
class Strikes:
    """The faults of one run. `wait` lets time pass and raises Aborted when the run must end."""

    run: Run
    side: Side
    load: Load
    sandbox: Sandbox | None
    webhooks: WebhookDisorder
    rows: Callable[[], list[Row]]
    wait: Callable[[float], None]
    # Called at both ends of a named fault.
    turn: Callable[[str], None]
    # None: no commits can be lost on this side.
    lost_commits: LostCommits | None = None
    # How often a link, a signal or a webhook struck.
    struck: int = 0
    # Most workers that were ever seen ready.
    _workers: int = 1

    def carry_out(self, plan: Plan) -> None:
        """All faults in turn."""
        self.run.begin_fault(plan.fault_s)
        for step, following in zip(plan.steps, [*plan.steps[1:], None], strict=True):
            self.run.enter("fault", described(step))
            self.turn(f"{step.name} began")
            with self.run.fault(described(step)):
                self._begin(step)
                self._last(step)
            self.turn(f"{step.name} ended")
            self._end(step, following)

    def end(self) -> None:
        """Release the links. What cannot be told to end ends by its TTL and its heartbeat."""
        if self.side.striker is not None:
            with contextlib.suppress(ProxyGone, StrikeRefused):
                self.side.striker.clear()
        if self.sandbox is not None and self.run.plan.needs_sandbox:
            self.sandbox.clear()
        self.run.end_fault()

    def _begin(self, step: Step) -> None:
        waits_s = TTL_MARGIN_S + step.kills * REPLACED_WITHIN_S
        ttl_s = min(TTL_MAX_S, step.seconds + waits_s)
        if step.link is not None and step.mode is not None:
            self._striker().strike(step.link, step.mode, ttl_s=ttl_s, pause_ms=step.pause_ms)
        if step.sandbox is not None and self.sandbox is not None:
            self.sandbox.strike({**step.sandbox, **self._whom(), "ttl_s": ttl_s})
        if step.restart:
            self.run.tell(self._restart())
        if step.lose_commits:
            self._lose_commits(step.lose_commits)

    def _whom(self) -> dict[str, str]:
        """The sandbox is everybody's: a copy's payments are struck there, and no other's."""
        if self.side.name == "instance":
            return {}
        return {"reference_prefix": self.load.key_of(self.side.name, "")}

    def _last(self, step: Step) -> None:
        """Let it last, no longer than it says; what is done while it lasts is spread over it."""
        began_s = monotonic()
        for beat in range(step.beats):
            due_s = began_s + step.seconds * (beat + 0.5) / step.beats
            if beat and monotonic() > due_s + step.seconds / step.beats:
                continue  # What took too long is not caught up with.
            self.wait(max(0.0, due_s - monotonic()))
            if step.kills:
                self._kill()
            if step.webhooks:
                self._send_webhooks(Deadline(began_s + step.seconds))
            self.load.burst(step.burst)
        self.wait(max(0.0, began_s + step.seconds - monotonic()))

    def _end(self, step: Step, following: Step | None) -> None:
        """Faults follow each other, they do not add up. One on the same link takes the other's place
        without a moment in between, in which a probe would find the link well."""
        if step.link is not None:
            striker = self._striker()
            self.struck += striker.describe()[step.link]["struck"]
            if following is None or following.link != step.link:
                striker.clear()
        if step.sandbox is not None and self.sandbox is not None:
            self.struck += self.sandbox.struck()
            self.sandbox.clear()

    def _lose_commits(self, count: int) -> None:
        if self.lost_commits is None:
            raise Aborted("Commits are lost in a local run's database only.")
        try:
            self.struck += self.lost_commits.carry_out(count)
        except CannotLose as error:
            raise Inconclusive(str(error)) from error

    def _kill(self) -> None:
        """Kill a worker while all are there: live traffic needs those that serve."""
        give_up_at_s = monotonic() + REPLACED_WITHIN_S
        while (there := self.side.workers_ready()) < self._workers:
            if monotonic() > give_up_at_s:
                self.run.tell(f"Only {there} workers serve: no other one is killed")
                return
            self.wait(0.1)
        self._workers = there
        pid = self.side.kill_a_worker()
        if pid is None:
            raise Inconclusive("No worker of the data plane can be seen from here.")
        self.struck += 1
        self.run.tell(f"Killed worker {pid} with -9")

    def _send_webhooks(self, deadline: Deadline) -> None:
        rows = self.rows()[-WEBHOOK_PAYMENTS_MAX:]
        sent = self.webhooks.send(self.side.url, rows, deadline, wait=self.wait)
        self.struck += sent
        self.run.tell(f"{sent} webhooks, each twice and in the wrong order, were accepted")

    def _restart(self) -> str:
        """Of the database itself where it may be; else its connections break on the link."""
        self.struck += 1
        done = self.side.restart_database() if self.side.restart_database is not None else None
        if done is not None:
            return done
        striker = self._striker()
        striker.strike("database", "refuse", ttl_s=TTL_MARGIN_S)
        self.wait(BREAK_S)
        striker.clear()
        return "Every connection to the database was broken on the link"

    def _striker(self) -> Striker:
        if self.side.striker is None:
            raise Aborted("Nothing stands on the links of this side.")
        return self.side.striker


def described(step: Step) -> str:
    """The fault in a line."""
    words = []
    if step.link is not None:
        pause = f", {step.pause_ms:g} ms" if step.mode in ("latency", "drip") else ""
        words.append(f"{step.mode} on the link to the {step.link}{pause}")
    if step.sandbox is not None:
        words.append(f"the provider: {', '.join(step.sandbox['mix'])}")
    if step.restart:
        words.append("the database restarts")
    if step.lose_commits:
        words.append("the newest commits are lost")
    if step.kills:
        words.append(f"kill -9 of {step.kills} workers")
    if step.webhooks:
        words.append("webhooks twice and in the wrong order")
    if step.burst:
        words.append(f"{step.burst} callers at once")
    return f"{'; '.join(words)}; {step.seconds:g} s"
