"""What strikes the next call: the weights, and whom they are for."""

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


class Fault(StrEnum):
    """The ways a call can go wrong, in relation to the moment the money moves."""

    OK = "ok"
    SLOW = "slow"  # Works, after slow_ms.
    HANG = "hang"  # Nothing happens, no answer.
    HANG_AFTER_CHARGE = "hang_after_charge"  # All of it happens, no answer.
    RESET = "reset"
    RESET_AFTER_CHARGE = "reset_after_charge"
    LATE_CHARGE = "late_charge"  # Closed without an answer; all of it happens late_s later.
    DRIP = "drip"  # Happens; the body comes a byte every drip_ms.
    TRUNCATE = "truncate"  # Happens; the body ends half-way.
    TRUNCATE_HEAD = "truncate_head"  # Happens; the head ends before its blank line.
    GARBAGE = "garbage"  # Happens; 200 with a body that is no JSON.
    ERROR_429 = "error_429"  # Refused by the rate limit, nothing saved.
    ERROR_503 = "error_503"  # Refused at the door, nothing saved.
    ERROR_500_SAVED = "error_500_saved"  # Does not happen; the 500 is saved under the key.
    ERROR_500_AFTER_CHARGE = "error_500_after_charge"  # Happens; a 500 is saved under the key.


# What moves money or makes what will. Look-ups stay true unless they are named.
MONEY_OPERATIONS = ("create", "confirm", "capture", "refund")
OPERATIONS = (*MONEY_OPERATIONS, "cancel", "retrieve", "list")
# No rehearsal needs more, and a forgotten setting must not hold threads for ever.
LONGEST_S = 600.0


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to strike, as `POST /_control` gives it."""

    mix: Mapping[Fault, float] = field(default_factory=lambda: {Fault.OK: 1.0})
    # Only calls about the payment with this metadata[reference] or metadata[payment_id].
    reference: str | None = None
    # The same, for all payments whose reference or id begins so.
    reference_prefix: str | None = None
    operations: tuple[str, ...] = MONEY_OPERATIONS
    # Only the first so many calls that the plan is for; None: until it is changed.
    times: int | None = None
    # False: the sandbox ignores Idempotency-Key, as a bad provider would.
    honour_keys: bool = True
    slow_ms: float = 500.0
    drip_ms: float = 200.0
    hang_s: float = 60.0
    late_s: float = 3.0
    # From when it is set; a rehearsal that is killed must not leave its faults behind. None: stays.
    ttl_s: float | None = None

    def is_for(self, names: Callable[[], tuple[str | None, ...]]) -> bool:
        """Whether a payment known by these references is meant."""
        if self.reference is None and self.reference_prefix is None:
            return True
        return any(
            name == self.reference
            or (self.reference_prefix is not None and name.startswith(self.reference_prefix))
            for name in names()
            if name is not None
        )


class BadPlan(ValueError):
    """The plan cannot be understood; the text says why."""


def read_plan(encoded: bytes) -> Plan:
    """The plan in a JSON body; what it does not name is at its default."""
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
    return replace(Plan(), **values)


def _mix(name: str, value: Any) -> dict[Fault, float]:
    if not isinstance(value, dict) or not value:
        raise BadPlan(f"{name} must give weights by fault")
    unknown = set(value) - set(Fault)
    if unknown:
        raise BadPlan(f"unknown faults {sorted(unknown)}; known are {', '.join(Fault)}")
    weights = {Fault(fault): _number(fault, weight) for fault, weight in value.items()}
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
class Strike:
    """The fault drawn for one call, with the plan it came from."""

    fault: Fault
    plan: Plan


class Faults:
    """The plan in force and what it has done; may be asked from many threads."""

    def __init__(self, *, seed: int | None) -> None:
        # Not for secrets: a seed makes a run repeatable.
        self._random = random.Random(seed)  # noqa: S311
        self._lock = threading.Lock()
        self._plan = Plan()
        self._left: int | None = None
        self._ends_at_s = math.inf
        self._struck: Counter[str] = Counter()
        self._calls: Counter[str] = Counter()

    def set(self, plan: Plan) -> None:
        """Put a plan in force; what struck is counted from here."""
        with self._lock:
            self._plan, self._left = plan, plan.times
            self._ends_at_s = math.inf if plan.ttl_s is None else monotonic() + plan.ttl_s
            self._struck.clear()

    def draw(
        self, operations: tuple[str, ...], names: Callable[[], tuple[str | None, ...]]
    ) -> Strike:
        """What strikes this call. `names` (asked only when the plan is for one payment) tells the
        references by which the call's payment is known."""
        plan = self._plan if monotonic() < self._ends_at_s else Plan()
        is_meant = not set(operations).isdisjoint(plan.operations) and plan.is_for(names)
        with self._lock:
            self._calls[operations[0]] += 1
            if not is_meant or self._left == 0:
                return Strike(Fault.OK, plan)
            if self._left is not None:
                self._left -= 1
            [fault] = self._random.choices(list(plan.mix), list(plan.mix.values()))
            if fault is not Fault.OK:
                self._struck[fault] += 1
            return Strike(fault, plan)

    def describe(self) -> dict[str, Any]:
        """The plan in force, the faults it struck with, and all calls since the start."""
        with self._lock:
            return {
                **asdict(self._plan),
                "struck": dict(self._struck),
                "calls": dict(self._calls),
            }
