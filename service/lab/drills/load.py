"""Synthetic payments at a steady rate: small, labelled, bounded, each sent until it has an answer."""

from __future__ import annotations

import functools
import threading
from dataclasses import dataclass
from time import monotonic
from typing import Any

import requests

from service.lab.drills.callers import SteadyCallers
from service.lab.drills.document import CallSample

# With more concurrent callers the drill would measure this process instead of the service.
CALLERS_MAX = 96
# Longer than the service's own limit; a caller that waits longer has seen a broken promise.
ANSWER_TIMEOUT_S = 15.0
# The smallest amount that providers charge in this currency.
AMOUNT_MINOR = 50
CURRENCY = "usd"
SUCCEEDED = frozenset({"succeeded"})


@dataclass(frozen=True, slots=True)
class Call:
    """One payment as its caller saw it; `status` is None where no answer came."""

    target: str
    n: int
    # Seconds since the run began.
    at_s: float
    ms: float
    status: int | None
    code: str | None
    outcome: str | None
    payment_id: str | None
    # A retry with the same key after the fault, as the contract asks of callers.
    is_retry: bool = False

    @property
    def is_refused(self) -> bool:
        """The service accepted nothing, by contract: a retry with the same key is safe."""
        return self.status is None or self.status >= 500 or self.status in (409, 429)

    def got(self, word: str) -> bool:
        """Whether the answer was this status (`503`, or `5xx`), code or outcome, or `no_answer`."""
        if self.status is None:
            return word == "no_answer"
        status = str(self.status)
        return word in (status, f"{status[0]}xx", self.code, self.outcome)

    def sample(self) -> CallSample:
        """The call as reports show it."""
        return CallSample(
            at_s=self.at_s,
            ms=self.ms,
            status=self.status,
            code=self.code,
            outcome=self.outcome,
            payment_id=self.payment_id,
            is_retry=self.is_retry,
        )


class Load:
    """Sends each payment to every target at the same moment. Begin it once, end it once."""

    def __init__(
        self, run_id: str, urls: dict[str, str], api_key: str, *, per_s: int, began_s: float
    ) -> None:
        self._run_id = run_id
        self._urls = urls
        self._headers = {"Authorization": f"Bearer {api_key}"}
        self._began_s = began_s
        self._calls: list[Call] = []
        self._lock = threading.Lock()
        self._local = threading.local()
        self._sessions: list[requests.Session] = []
        self._callers = SteadyCallers(
            [functools.partial(self._pay, target) for target in urls], per_s=per_s, most=CALLERS_MAX
        )

    def begin(self) -> None:
        self._callers.begin()

    @property
    def sent(self) -> int:
        """The number of payments sent to each target so far, without retries."""
        return self._callers.turns

    def calls(self) -> list[Call]:
        """All answers so far, in the order of arrival."""
        with self._lock:
            return list(self._calls)

    def burst(self, count: int) -> None:
        """Send this many additional payments at once."""
        for _ in range(count):
            self._callers.take_turn()

    def stop(self) -> None:
        """Stop sending, and wait for the outstanding answers."""
        self._callers.stop(within_s=ANSWER_TIMEOUT_S + 1)

    def repeat_refused(self) -> int:
        """Send each refused payment once more with its own key; returns their number."""
        refused = [call for call in self.calls() if call.is_refused]
        self._callers.repeat(
            (functools.partial(self._pay, call.target, call.n, True) for call in refused),
            within_s=ANSWER_TIMEOUT_S + 1,
        )
        return len(refused)

    def close(self) -> None:
        self._callers.close()
        for session in self._sessions:
            session.close()

    def key_of(self, target: str, n: int | str) -> str:
        """Key and reference of a payment; without a number, the common prefix of a target's keys."""
        return f"{self._run_id}-{target}-{n}"

    def _pay(self, target: str, n: int, is_retry: bool = False) -> None:
        began_s = monotonic()
        status, body = self._send(target, n)
        call = Call(
            target=target,
            n=n,
            at_s=round(began_s - self._began_s, 3),
            ms=round((monotonic() - began_s) * 1000, 1),
            status=status,
            code=body.get("code"),
            outcome=body.get("outcome") if status and status < 400 else None,
            payment_id=body.get("id") or body.get("payment_id"),
            is_retry=is_retry,
        )
        with self._lock:
            self._calls.append(call)

    def _send(self, target: str, n: int) -> tuple[int | None, dict[str, Any]]:
        key = self.key_of(target, n)
        try:
            answer = self._session().post(
                f"{self._urls[target]}/v1/payments",
                json={
                    "amount": AMOUNT_MINOR,
                    "currency": CURRENCY,
                    "payment_method": "pm_card_visa",
                    "reference": key,
                    "metadata": {"drill": self._run_id, "side": target},
                },
                # The request id connects a payment with its log events.
                headers={**self._headers, "Idempotency-Key": key, "X-Request-Id": key},
                timeout=ANSWER_TIMEOUT_S,
            )
            body = answer.json()
        except (requests.RequestException, ValueError):
            return None, {}
        return answer.status_code, body if isinstance(body, dict) else {}

    def _session(self) -> requests.Session:
        session: requests.Session | None = getattr(self._local, "session", None)
        if session is None:
            session = self._local.session = requests.Session()
            session.trust_env = False
            with self._lock:
                self._sessions.append(session)
        return session
