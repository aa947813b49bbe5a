"""The plan of a drill: its faults and expectations, read from one TOML file and validated."""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from service.lab.drills.measurable import require_measurable
from service.lab.faultproxy.faults import TTL_MAX_S, Mode

OURS = Path(__file__).parent / "plans"
# The three errors of the incident, each with a button.
SIMULATIONS = ("payment-timeout", "connection-error", "pool-exhaustion")
GAME_DAY = "game-day"
# A higher rate would measure this machine instead of the service.
LOAD_PER_S_MAX = 20
# With 300 s of faults the run fits a report's timeline, and ends long before its key expires.
PHASES_MAX_S = {"baseline_s": 60.0, "recovery_max_s": 120.0, "settling_max_s": 300.0}
# Four payments for each, sent one after the other.
LOST_MAX = 10
# Each name is a label value of five metrics: the series of an instance are bounded.
PLANS_MAX = 40
# The periods of a check; each named fault of the plan is one more.
DURING = ("fault", "recovery", "all")
_MEASURES = {
    # On the service's own registry: growth of a counter or histogram, values of a gauge.
    **dict.fromkeys(("delta", "rate", "peak", "low", "after"), "metric"),
    **dict.fromkeys(("quantile", "share_over"), "at"),
    # On the drill's own callers: the share with an answer, and a quantile of the waiting time.
    "callers": "word",
    "waited": "at",
    # On the run itself.
    **dict.fromkeys(("recovery", "settled", "struck"), ""),
}
_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A fault and its duration; all actions of one step happen together."""

    seconds: float
    # A check refers to this fault by this name.
    name: str = ""
    link: str | None = None
    mode: Mode | None = None
    pause_ms: float = 100.0
    # A plan for the sandbox provider's `/_control`.
    sandbox: Mapping[str, Any] | None = None
    # The number of `kill -9` signals to workers of the data plane.
    kills: int = 0
    # End every connection to the database at once, as a restart does.
    restart: bool = False
    # Lose the newest commits of this many payments of each kind; only in a local run's database.
    lose_commits: int = 0
    # The provider's webhooks, each twice and in the wrong order, once a second.
    webhooks: bool = False
    # This many additional callers at one moment, once a second.
    burst: int = 0

    @property
    def beats(self) -> int:
        """The number of repetitions of the step's action."""
        if self.kills:
            return self.kills
        return max(1, round(self.seconds)) if self.webhooks or self.burst else 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """A measured number and its bounds. Metric names are without prefix."""

    text: str
    measure: str
    metric: str = ""
    # The quantile, or the bucket's edge in seconds.
    at: float = 0.0
    # A caller's status, code or outcome.
    word: str = ""
    # `!value` matches every other value.
    labels: Mapping[str, str]
    # Divide by the growth of this counter.
    per: str | None = None
    per_labels: Mapping[str, str]
    during: str = "all"
    min: float | None = None
    max: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One drill, from its file."""

    name: str
    title: str
    hypothesis: str
    runbook: str | None = None
    # The incident's log text, exactly as the log must contain it.
    incident: str | None = None
    scopes: tuple[str, ...] = ("instance", "pair")
    load_per_s: int = 4
    baseline_s: float = 3.0
    recovery_max_s: float = 15.0
    settling_max_s: float = 45.0
    # The duration of a fault that operators must identify.
    blind_fault_s: float = 60.0
    steps: tuple[Step, ...] = ()
    fault_proof: tuple[Check, ...] = ()
    expect: tuple[Check, ...] = ()
    # Fewer payments than this prove nothing.
    payments_min: int = 10
    # The drills of a game day, in turn.
    parts: tuple[str, ...] = ()

    @property
    def fault_s(self) -> float:
        return sum(step.seconds for step in self.steps)

    @property
    def needs_sandbox(self) -> bool:
        return any(step.sandbox is not None or step.lose_commits for step in self.steps)

    @property
    def needs_local_database(self) -> bool:
        return any(step.lose_commits for step in self.steps)

    @property
    def needs_links(self) -> bool:
        return any(step.link is not None for step in self.steps)

    def lasting(self, fault_s: float) -> Plan:
        """The same plan with its faults scaled to `fault_s` in total."""
        factor = fault_s / self.fault_s if self.fault_s else 1.0
        steps = tuple(replace(step, seconds=step.seconds * factor) for step in self.steps)
        return replace(self, steps=steps)


Catalogue = Mapping[str, Plan]


def read_catalogue(own: Path | None = None) -> Catalogue:
    """The built-in plans and those in the directory `own`, sorted; raises ValueError for a bad one."""
    directories = [OURS, *([own] if own else [])]
    paths = [path for directory in directories for path in sorted(directory.glob("*.toml"))]
    if own is not None and not own.is_dir():
        raise ValueError(f"{own} is not a directory")
    if len(paths) > PLANS_MAX:
        raise ValueError(f"{len(paths)} drills: the metrics can label at most {PLANS_MAX}")
    read = [_read(path) for path in paths]
    plans: dict[str, Plan] = {}
    for _, plan in sorted(read, key=lambda one: one[0]):
        if plan.name in plans:
            raise ValueError(f"{plan.name}.toml: a drill with that name exists already")
        plans[plan.name] = plan
    for plan in plans.values():
        if unknown := set(plan.parts) - {name for name, one in plans.items() if not one.parts}:
            raise ValueError(f"{plan.name}.toml: no such parts: {', '.join(sorted(unknown))}")
    return plans


def _read(path: Path) -> tuple[float, Plan]:
    name = path.stem
    if not _NAME.fullmatch(name) or len(name) > 40:
        raise ValueError(f"{path.name}: a drill's name consists of a-z, 0-9 and single hyphens")
    try:
        content = tomllib.loads(path.read_text())
        return float(content.pop("order", 100)), _plan(name, content)
    except (OSError, TypeError, ValueError, KeyError, AttributeError) as error:
        raise ValueError(f"{path.name}: {error}") from error


def _plan(name: str, content: dict[str, Any]) -> Plan:
    steps = tuple(_step(step) for step in content.pop("faults", []))
    fault_proof = tuple(_check(check) for check in content.pop("bite", []))
    expect = tuple(_check(check) for check in content.pop("expect", []))
    for field in ("scopes", "parts"):
        if field in content:
            content[field] = tuple(content[field])
    plan = Plan(name=name, steps=steps, fault_proof=fault_proof, expect=expect, **content)
    if bool(plan.parts) == bool(plan.steps):
        raise ValueError("a drill needs faults, or parts")
    if max(plan.fault_s, plan.blind_fault_s) > TTL_MAX_S:
        raise ValueError(f"all faults together may last at most {TTL_MAX_S:.0f} s")
    if not 1 <= plan.load_per_s <= LOAD_PER_S_MAX:
        raise ValueError(f"load_per_s must be 1 to {LOAD_PER_S_MAX} payments a second")
    for field, most_s in PHASES_MAX_S.items():
        if not 0 <= getattr(plan, field) <= most_s:
            raise ValueError(f"{field} must be 0 to {most_s:.0f}")
    if plan.steps and not (plan.fault_proof and plan.expect):
        raise ValueError("a drill needs a fault proof, and at least one expectation")
    known = {*DURING, *(step.name for step in plan.steps if step.name)}
    for check in (*plan.fault_proof, *plan.expect):
        if check.during not in known:
            raise ValueError(f"{check.text}: during must be one of {', '.join(sorted(known))}")
    return plan


def _step(content: dict[str, Any]) -> Step:
    if "mode" in content:
        content = {**content, "mode": Mode(content["mode"])}
    step = Step(**content)
    if (step.link is None) != (step.mode is None):
        raise ValueError("a fault on a link needs both link and mode")
    if step.name in DURING:
        raise ValueError(f"{step.name} is not a valid name of a fault")
    if step.restart and step.link is not None:
        raise ValueError("a restart needs the link alone: make two faults of them")
    acts = (step.link, step.sandbox, step.kills, step.restart, step.webhooks, step.burst)
    if not 0 <= step.lose_commits <= LOST_MAX:
        raise ValueError(f"lose_commits must be at most {LOST_MAX}")
    if not any((*acts, step.lose_commits)) or step.seconds <= 0:
        raise ValueError("a fault needs seconds, and at least one action")
    return step


def _check(content: Mapping[str, Any]) -> Check:
    """`delta = "x"`, `quantile = 0.95` with `of = "x"`, and so on: exactly one measure."""
    given: dict[str, Any] = {"labels": {}, "per_labels": {}, **content}
    measures = [word for word in _MEASURES if word in given]
    if len(measures) != 1:
        raise ValueError(f"{given.get('text')}: exactly one of {', '.join(_MEASURES)} is needed")
    [measure] = measures
    value, field = given.pop(measure), _MEASURES[measure]
    if field:
        given[field] = float(value) if field == "at" else value
    if measure in ("quantile", "share_over"):
        given["metric"] = given.pop("of")
    if "min" not in given and "max" not in given:
        raise ValueError(f"{given.get('text')}: min or max is needed")
    if not all(math.isfinite(given[name]) for name in ("min", "max") if name in given):
        raise ValueError(f"{given.get('text')}: min and max must be finite numbers")
    excludes = any(str(word).startswith("!") for word in given["labels"].values())
    if excludes and measure not in ("delta", "rate"):
        raise ValueError(f"{given.get('text')}: !word is for delta and rate")
    if "metric" in given:
        require_measurable(measure, given["metric"], given["labels"])
    if given.get("per"):
        require_measurable("delta", given["per"], given["per_labels"])
    return Check(measure=measure, **given)


def takes_s(plan: Plan, catalogue: Catalogue) -> float:
    """The approximate duration of a run without delays."""
    if plan.parts:
        return sum(takes_s(catalogue[name], catalogue) for name in plan.parts)
    # 10 s for recovery and settling.
    return plan.baseline_s + plan.fault_s + 10.0
