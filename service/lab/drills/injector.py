"""Injects a plan's faults into one target, one after the other, and ends them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic

from service.lab.drills.books import Row
from service.lab.drills.load import Load
from service.lab.drills.lost_commits import CannotLose, LostCommits
from service.lab.drills.plan import Plan, Step
from service.lab.drills.run import Run
from service.lab.drills.sandbox import Sandbox
from service.lab.drills.targets import Target
from service.lab.drills.webhooks import WebhookDisorder
from service.lab.faultproxy.client import FaultClient, FaultRefused, ProxyGone
from service.lab.faultproxy.faults import TTL_MAX_S
from service.resilience.deadline import Deadline

# The proxy's TTL is a little longer than the plan's time, in case the order to clear fails.
TTL_MARGIN_S = 2.0
# A worker's start is mostly imports, and takes several seconds on a busy machine.
REPLACED_WITHIN_S = 10.0
# Long enough for the proxy to break existing connections, too short for a retry to be refused.
BREAK_S = 0.1
# A round of webhooks must be complete within its second.
WEBHOOK_PAYMENTS_MAX = 4


class Aborted(Exception):
    """The drill must end now; the message gives the reason."""


class Inconclusive(Exception):
    """The run proved nothing; the message names the missing proof."""


@dataclass(kw_only=True)
class FaultInjector:
    """The faults of one run. `wait` lets time pass and raises Aborted when the run must end."""

    run: Run
    target: Target
    load: Load
    sandbox: Sandbox | None
    webhooks: WebhookDisorder
    rows: Callable[[], list[Row]]
    wait: Callable[[float], None]
    # Called at the start and the end of a named fault.
    turn: Callable[[str], None]
    # None: this target cannot lose commits.
    lost_commits: LostCommits | None = None
    # The number of times that a link, a signal or a webhook injected the fault.
    injections: int = 0
    # The largest number of ready workers so far.
    _workers: int = 1

    def carry_out(self, plan: Plan) -> None:
        """Inject all faults in turn."""
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
        """Clear the links. A fault that cannot be cleared ends by its TTL and its heartbeat."""
        if self.target.fault_client is not None:
            with contextlib.suppress(ProxyGone, FaultRefused):
                self.target.fault_client.clear()
        if self.sandbox is not None and self.run.plan.needs_sandbox:
            self.sandbox.clear()
        self.run.end_fault()

    def _begin(self, step: Step) -> None:
        waits_s = TTL_MARGIN_S + step.kills * REPLACED_WITHIN_S
        ttl_s = min(TTL_MAX_S, step.seconds + waits_s)
        if step.link is not None and step.mode is not None:
            self._fault_client().inject(step.link, step.mode, ttl_s=ttl_s, pause_ms=step.pause_ms)
        if step.sandbox is not None and self.sandbox is not None:
            self.sandbox.inject({**step.sandbox, **self._whom(), "ttl_s": ttl_s})
        if step.restart:
            self.run.tell(self._restart())
        if step.lose_commits:
            self._lose_commits(step.lose_commits)

    def _whom(self) -> dict[str, str]:
        """The filter for the sandbox, which all targets share: only a copy's own payments are faulted."""
        if self.target.name == "instance":
            return {}
        return {"reference_prefix": self.load.key_of(self.target.name, "")}

    def _last(self, step: Step) -> None:
        """Keep the fault for its time, and spread the step's actions over that time."""
        began_s = monotonic()
        for beat in range(step.beats):
            due_s = began_s + step.seconds * (beat + 0.5) / step.beats
            if beat and monotonic() > due_s + step.seconds / step.beats:
                continue  # An action that took too long shortens the rest; missed ones are not repeated.
            self.wait(max(0.0, due_s - monotonic()))
            if step.kills:
                self._kill()
            if step.webhooks:
                self._send_webhooks(Deadline(began_s + step.seconds))
            self.load.burst(step.burst)
        self.wait(max(0.0, began_s + step.seconds - monotonic()))

    def _end(self, step: Step, following: Step | None) -> None:
        """Clear a fault, since faults follow each other and do not add up. A following fault on the same
        link replaces this one directly, without a moment in which a probe would find the link healthy."""
        if step.link is not None:
            fault_client = self._fault_client()
            self.injections += fault_client.describe()[step.link]["struck"]
            if following is None or following.link != step.link:
                fault_client.clear()
        if step.sandbox is not None and self.sandbox is not None:
            self.injections += self.sandbox.injections()
            self.sandbox.clear()

    def _lose_commits(self, count: int) -> None:
        if self.lost_commits is None:
            raise Aborted("Only a local run's database can lose commits.")
        try:
            self.injections += self.lost_commits.carry_out(count)
        except CannotLose as error:
            raise Inconclusive(str(error)) from error

    def _kill(self) -> None:
        """Kill a worker once all are ready: live traffic needs the others."""
        give_up_at_s = monotonic() + REPLACED_WITHIN_S
        while (there := self.target.workers_ready()) < self._workers:
            if monotonic() > give_up_at_s:
                self.run.tell(f"Only {there} workers are ready: no further worker is killed")
                return
            self.wait(0.1)
        self._workers = there
        pid = self.target.kill_a_worker()
        if pid is None:
            raise Inconclusive("No worker of the data plane is visible from this process.")
        self.injections += 1
        self.run.tell(f"Killed worker {pid} with -9")

    def _send_webhooks(self, deadline: Deadline) -> None:
        rows = self.rows()[-WEBHOOK_PAYMENTS_MAX:]
        sent = self.webhooks.send(self.target.url, rows, deadline, wait=self.wait)
        self.injections += sent
        self.run.tell(f"{sent} webhooks, each twice and in the wrong order, were accepted")

    def _restart(self) -> str:
        """Restart the database where permitted; else break all its connections on the link."""
        self.injections += 1
        done = self.target.restart_database() if self.target.restart_database is not None else None
        if done is not None:
            return done
        fault_client = self._fault_client()
        fault_client.inject("database", "refuse", ttl_s=TTL_MARGIN_S)
        self.wait(BREAK_S)
        fault_client.clear()
        return "All connections to the database were broken on the link"

    def _fault_client(self) -> FaultClient:
        if self.target.fault_client is None:
            raise Aborted("The links of this target have no fault proxy.")
        return self.target.fault_client


def described(step: Step) -> str:
    """The fault as one line of text."""
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
