"""The moment on the monotonic clock at which the answer is due; passed down as an argument."""

from __future__ import annotations

from dataclasses import dataclass, field
from time import monotonic

from service.errors import DeadlineExceeded


@dataclass(frozen=True, slots=True)
class Deadline:
    """A moment (seconds on `time.monotonic`). Immutable, so it may cross threads."""

    at_s: float
    # The original budget, for messages: "timeout after 5000ms" names the setting, not the rest.
    budget_s: float = field(default=0.0, compare=False)

    @classmethod
    def after(cls, seconds: float) -> Deadline:
        """The moment `seconds` from now."""
        return cls(monotonic() + seconds, seconds)

    def remaining_s(self) -> float:
        """Seconds left, never below 0."""
        return max(0.0, self.at_s - monotonic())

    @property
    def expired(self) -> bool:
        return monotonic() >= self.at_s

    def within(self, seconds: float) -> Deadline:
        """The earlier of this deadline and `seconds` from now: a step may shorten, never extend."""
        shorter = Deadline.after(seconds)
        return shorter if shorter.at_s < self.at_s else self

    def require(self) -> None:
        """Raise DeadlineExceeded when no time is left; call it before starting work."""
        if self.expired:
            raise DeadlineExceeded("The time for this request was spent before work began.")
