"""What a rehearsal does and what must hold meanwhile: the TOML files in `drills/`, read and checked."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

from service.simulation.faults import Mode

DIRECTORY = Path(__file__).parent / "drills"
# The three errors of the incident, each a button.
SIMULATIONS = ("payment-timeout", "connection-error", "pool-exhaustion")
GAME_DAY = "game-day"
# What is counted between which readings.
During = Literal["fault", "recovery", "all"]
_MEASURES = ("delta", "rate", "quantile", "share_over", "peak", "low", "after", "recovery")


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One fault and how long it lasts. Exactly one of its kinds is given."""

    seconds: float
    link: str | None = None
    mode: Mode | None = None
    pause_ms: float = 100.0
    # A plan for the sandbox provider's `/_control`.
    sandbox: Mapping[str, Any] | None = None
    # Kill -9 of a worker of the data plane, so often.
    kills: int = 0
    # The provider's webhooks, twice each and in the wrong order.
    webhooks: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """A number that is measured and the bounds it must keep. Metric names are without prefix."""

    text: str
    measure: str
    metric: str = ""
    # The quantile, or the edge in seconds.
    at: float = 0.0
    # Divide by the growth of this counter.
    per: str | None = None
    labels: Mapping[str, str] = frozenset()  # type: ignore[assignment]
    during: During = "all"
    min: float | None = None
    max: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One rehearsal, from its file."""

    name: str
    title: str
    hypothesis: str
    runbook: str | None = None
    # The incident's words, as they must appear in the log.
    incident: str | None = None
    scopes: tuple[str, ...] = ("instance", "pair")
    load_per_s: int = 4
    baseline_s: float = 3.0
    recovery_max_s: float = 15.0
    settling_max_s: float = 45.0
    steps: tuple[Step, ...] = ()
    bite: tuple[Check, ...] = ()
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
        return any(step.sandbox is not None for step in self.steps)

    @property
    def needs_links(self) -> bool:
        return any(step.link is not None for step in self.steps)

    def lasting(self, fault_s: float) -> Plan:
        """The same with its faults stretched or shortened to `fault_s` together."""
        factor = fault_s / self.fault_s if self.fault_s else 1.0
        steps = tuple(replace(step, seconds=step.seconds * factor) for step in self.steps)
        return replace(self, steps=steps)


@cache
def catalogue() -> Mapping[str, Plan]:
    """All plans by name, in the order of their files' `order`; raises ValueError for a bad file."""
    files = [(tomllib.loads(path.read_text()), path) for path in sorted(DIRECTORY.glob("*.toml"))]
    files.sort(key=lambda one: one[0]["order"])
    return {path.stem: _plan(path.stem, content) for content, path in files}


def _plan(name: str, content: dict[str, Any]) -> Plan:
    content = dict(content)
    del content["order"]
    steps = tuple(_step(name, step) for step in content.pop("faults", []))
    bite = tuple(_check(name, check) for check in content.pop("bite", []))
    expect = tuple(_check(name, check) for check in content.pop("expect", []))
    for field in ("scopes", "parts"):
        if field in content:
            content[field] = tuple(content[field])
    try:
        return Plan(name=name, steps=steps, bite=bite, expect=expect, **content)
    except TypeError as error:
        raise ValueError(f"{name}.toml: {error}") from error


def _step(name: str, content: dict[str, Any]) -> Step:
    try:
        if "mode" in content:
            content = {**content, "mode": Mode(content["mode"])}
        return Step(**content)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}.toml: a fault: {error}") from error


def _check(name: str, content: dict[str, Any]) -> Check:
    """`delta = "x"`, `quantile = 0.95` with `of = "x"`, and so on: exactly one measure."""
    content = dict(content)
    measures = [word for word in _MEASURES if word in content]
    if len(measures) != 1:
        raise ValueError(f"{name}.toml: {content.get('text')}: exactly one of {_MEASURES}")
    measure = measures[0]
    value = content.pop(measure)
    given: dict[str, Any] = {"measure": measure}
    if measure in ("quantile", "share_over"):
        given |= {"at": float(value), "metric": content.pop("of")}
    elif measure != "recovery":
        given["metric"] = value
    try:
        return Check(**given, **{"labels": {}, **content})
    except TypeError as error:
        raise ValueError(f"{name}.toml: {content.get('text')}: {error}") from error
