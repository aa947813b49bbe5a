"""The faults for the next calls: their weights, and the payments that they apply to."""

from __future__ import annotations

import json
import math
import random
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from time import monotonic
from typing import Any


class SandboxFault(StrEnum):
    """The failures of a call, in relation to the moment at which the money moves."""

    OK = "ok"
    SLOW = "slow"  # Performed, after slow_ms.
    HANG = "hang"  # Not performed, no answer.
    HANG_AFTER_CHARGE = "hang_after_charge"  # Performed, no answer.
    RESET = "reset"
    RESET_AFTER_CHARGE = "reset_after_charge"
    LATE_CHARGE = "late_charge"  # Closed without an answer; performed late_s later.
    DRIP = "drip"  # Performed; the body is sent one byte every drip_ms.
    TRUNCATE = "truncate"  # Performed; the body ends half-way.
    TRUNCATE_HEAD = "truncate_head"  # Performed; the head ends before its blank line.
    GARBAGE = "garbage"  # Performed; 200 with a body that is not JSON.
    ERROR_429 = "error_429"  # Refused by the rate limit; no answer is saved.
    ERROR_503 = "error_503"  # Refused before parsing; no answer is saved.
    ERROR_500_SAVED = "error_500_saved"  # Not performed; the 500 is saved under the key.
    ERROR_500_AFTER_CHARGE = "error_500_after_charge"  # Performed; a 500 is saved under the key.


# Operations that move money or prepare it. Look-ups have faults only where a plan names them.
MONEY_OPERATIONS = ("create", "confirm", "capture", "refund")
OPERATIONS = (*MONEY_OPERATIONS, "cancel", "retrieve", "list")
# No drill needs more, and a forgotten setting must not hold threads without limit.
LONGEST_S = 600.0


@dataclass(frozen=True, slots=True)
class FaultPlan:
    """The faults to inject, as `POST /_control` gives them."""

    mix: Mapping[SandboxFault, float] = field(default_factory=lambda: {SandboxFault.OK: 1.0})
    # Only calls about the payment with this metadata[reference] or metadata[payment_id].
    reference: str | None = None
    # The same, for all payments with this prefix of reference or id.
    reference_prefix: str | None = None
    operations: tuple[str, ...] = MONEY_OPERATIONS
    # Only the first N calls that match the plan; None: until the plan is replaced.
    times: int | None = None
    # False: the sandbox ignores Idempotency-Key, as a faulty provider would.
    honour_keys: bool = True
    slow_ms: float = 500.0
    drip_ms: float = 200.0
    hang_s: float = 60.0
    late_s: float = 3.0
    # Counted from activation; a killed drill must not leave its faults behind. None: no limit.
    ttl_s: float | None = None

    def is_for(self, names: Callable[[], tuple[str | None, ...]]) -> bool:
        """Whether the plan applies to a payment with these references."""
        if self.reference is None and self.reference_prefix is None:
            return True
        return any(
            name == self.reference
            or (self.reference_prefix is not None and name.startswith(self.reference_prefix))
            for name in names()
            if name is not None
        )


class BadPlan(ValueError):
    """The plan cannot be parsed; the text gives the reason."""


def read_plan(encoded: bytes) -> FaultPlan:
    """The plan of a JSON body; missing fields have their defaults."""
    try:
        given = json.loads(encoded)
    except ValueError as error:
        raise BadPlan("the body is not JSON") from error
    if not isinstance(given, dict):
        raise BadPlan("the body is not a JSON object")
    values = {}
    for name, value in given.items():
        if name not in _READERS:
            raise BadPlan(f"unknown field {name!r}; known are {', '.join(_READERS)}")
        values[name] = _READERS[name](name, value)
    return replace(FaultPlan(), **values)


def _mix(name: str, value: Any) -> dict[SandboxFault, float]:
    if not isinstance(value, dict) or not value:
        raise BadPlan(f"{name} must give weights by fault")
    unknown = set(value) - set(SandboxFault)
    if unknown:
        raise BadPlan(f"unknown faults {sorted(unknown)}; known are {', '.join(SandboxFault)}")
    weights = {SandboxFault(fault): _number(fault, weight) for fault, weight in value.items()}
    if sum(weights.values()) <= 0:
        raise BadPlan(f"{name} needs a weight above 0")
    return weights


def _number(name: str, value: Any) -> float:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or value < 0:
        raise BadPlan(f"{name} must be a number, 0 or more")
    return float(value)


def _seconds(name: str, value: Any) -> float:
    return min(_number(name, value), LONGEST_S)


def _milliseconds(name: str, value: Any) -> float:
    return min(_number(name, value), LONGEST_S * 1000)


def _reference(name: str, value: Any) -> str | None:
    if value is not None and not isinstance(value, str):
        raise BadPlan(f"{name} must be text or null")
    return value


def _operations(name: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not value or not set(value) <= set(OPERATIONS):
        raise BadPlan(f"{name} must be a list out of {', '.join(OPERATIONS)}")
    return tuple(value)


def _times(name: str, value: Any) -> int | None:
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise BadPlan(f"{name} must be a whole number above 0, or null")
    return value


def _boolean(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise BadPlan(f"{name} must be true or false")
    return value


_READERS: dict[str, Callable[[str, Any], Any]] = {
    "mix": _mix,
    "reference": _reference,
    "reference_prefix": _reference,
    "operations": _operations,
    "times": _times,
    "honour_keys": _boolean,
    "slow_ms": _milliseconds,
    "drip_ms": _milliseconds,
    "hang_s": _seconds,
    "late_s": _seconds,
    "ttl_s": lambda name, value: None if value is None else _seconds(name, value),
}


@dataclass(frozen=True, slots=True)
class DrawnFault:
    """The fault drawn for one call, with its plan."""

    fault: SandboxFault
    plan: FaultPlan


class Faults:
    """The active plan and its counts; any number of threads may use it."""

    def __init__(self, *, seed: int | None) -> None:
        # Not for secrets: a seed makes a run repeatable.
        self._random = random.Random(seed)  # noqa: S311
        self._lock = threading.Lock()
        self._plan = FaultPlan()
        self._left: int | None = None
        self._ends_at_s = math.inf
        self._injected: Counter[str] = Counter()
        self._calls: Counter[str] = Counter()

    def set(self, plan: FaultPlan) -> None:
        """Activate a plan; counting starts again."""
        with self._lock:
            self._plan, self._left = plan, plan.times
            self._ends_at_s = math.inf if plan.ttl_s is None else monotonic() + plan.ttl_s
            self._injected.clear()

    def draw(
        self, operations: tuple[str, ...], names: Callable[[], tuple[str | None, ...]]
    ) -> DrawnFault:
        """The fault for this call. `names` (called only when the plan selects payments) returns the
        references that identify the call's payment."""
        plan = self._plan if monotonic() < self._ends_at_s else FaultPlan()
        is_meant = not set(operations).isdisjoint(plan.operations) and plan.is_for(names)
        with self._lock:
            self._calls[operations[0]] += 1
            if not is_meant or self._left == 0:
                return DrawnFault(SandboxFault.OK, plan)
            if self._left is not None:
                self._left -= 1
            [fault] = self._random.choices(list(plan.mix), list(plan.mix.values()))
            if fault is not SandboxFault.OK:
                self._injected[fault] += 1
            return DrawnFault(fault, plan)

    def describe(self) -> dict[str, Any]:
        """The active plan, the count of its faults, and all calls since the start."""
        with self._lock:
            return {
                **asdict(self._plan),
                "struck": dict(self._injected),
                "calls": dict(self._calls),
            }
