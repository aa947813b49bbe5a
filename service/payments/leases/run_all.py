"""How a loop runs one call for each of its due rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol, TypeVar

Item = TypeVar("Item")


class RunAll(Protocol):
    """Runs a call for each payment (or other item) in parallel, and returns the results in any order."""

    def __call__(self, call: Callable[[Item], bool], payments: Iterable[Item]) -> list[bool]: ...
