"""Pays, refunds and captures, loses the commits, and retries with the same keys: once or twice?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from time import monotonic
from typing import Any
from uuid import UUID

import requests

from service.database.direct import Unreachable
from service.ids import parse_id
from service.lab.drills.document import RuleResult, rule_result
from service.lab.drills.load import AMOUNT_MINOR, ANSWER_TIMEOUT_S, CURRENCY, Call
from service.lab.drills.losses import LocalDatabase, Losses
from service.lab.drills.run import Run
from service.lab.drills.sandbox import Sandbox

# More than half of the payment: the provider itself would refuse to refund it twice.
MOVED_MINOR = AMOUNT_MINOR
PAID_MINOR = 3 * AMOUNT_MINOR
# A claim whose worker died is detected after its lease and the quiescence time.
ANSWERED_WITHIN_S = 60.0
AGAIN_S = 0.5
# The lost part of each payment, and the amounts that the provider's books must show in the end.
_LEFT_BEHIND: Mapping[str, Mapping[str, list[int]]] = {
    "payment": {"charge": [PAID_MINOR]},
    "outcome": {"charge": [PAID_MINOR]},
    "refund": {"charge": [PAID_MINOR], "refund": [MOVED_MINOR]},
    "capture": {"authorize": [PAID_MINOR], "capture": [MOVED_MINOR]},
}
_RULE_OF = {"charge": "charged_once", "refund": "refunded_once", "capture": "captured_once"}


@dataclass(frozen=True, slots=True)
class Victim:
    """One payment of the drill, named by the part it loses: payment, outcome, refund or capture."""

    loses: str
    # Key and reference of the payment; its refund or capture has a separate key.
    key: str
    payment_id: str

    @property
    def uuid(self) -> UUID | None:
        return parse_id(self.payment_id, "pay_")


class CannotLose(Exception):
    """The commits could not be lost, or no payment succeeded before; the message gives the reason."""


class LostCommits:
    """One loss, from the payments before it to the comparison with the provider's books."""

    def __init__(
        self,
        run: Run,
        database: LocalDatabase,
        sandbox: Sandbox,
        *,
        url: str,
        api_key: str,
        wait: Callable[[float], None],
    ) -> None:
        self._run = run
        self._database = database
        self._sandbox = sandbox
        self._url = url
        self._api_key = api_key
        self._wait = wait
        self._session = requests.Session()
        self._session.trust_env = False
        self.rules: list[RuleResult] = []
        # Payments only: the guard of live traffic counts nothing else.
        self.calls: list[Call] = []

    def carry_out(self, count: int) -> int:
        """Lose `count` of each kind; returns the number of payments set back. Raises CannotLose."""
        with self._session:
            victims = [
                self._pay(loses, f"{self._run.id}-lost-{loses}-{n}")
                for n in range(count)
                for loses in _LEFT_BEHIND
            ]
            for victim in victims:
                self._move(victim)
            touched = self._lose(victims)
            self._run.tell(f"{touched} payments were set back; the same keys are sent again")
            unanswered = self._repeat(victims)
            self.rules = [*self._judged(victims), rule_result("ours", "known_again", unanswered)]
        return touched

    def _pay(self, loses: str, key: str) -> Victim:
        status, body = self._post_payment(loses, key)
        if status != 201:
            raise CannotLose(f"A payment before the loss was answered with {status}.")
        return Victim(loses, key, str(body["id"]))

    def _post_payment(self, loses: str, key: str) -> tuple[int | None, dict[str, Any]]:
        status, body = self._post(
            "/v1/payments",
            key,
            amount=PAID_MINOR,
            currency=CURRENCY,
            payment_method="pm_card_visa",
            reference=key,
            capture_method="manual" if loses == "capture" else "automatic",
        )
        outcome = body.get("outcome") if status and status < 400 else None
        self.calls.append(
            Call(
                target="instance",
                n=len(self.calls),
                at_s=self._run.at_s,
                ms=0.0,
                status=status,
                code=body.get("code"),
                outcome=outcome,
                payment_id=None,
            )
        )
        return status, body

    def _move(self, victim: Victim) -> None:
        status, _ = self._post_movement(victim)
        if status not in (None, 200, 201):
            raise CannotLose(f"A {victim.loses} before the loss was answered with {status}.")

    def _post_movement(self, victim: Victim) -> tuple[int | None, dict[str, Any]]:
        """(None, {}) where the victim loses the payment itself."""
        path = {"refund": "refunds", "capture": "capture"}.get(victim.loses)
        if path is None:
            return None, {}
        address = f"/v1/payments/{victim.payment_id}/{path}"
        return self._post(address, f"{victim.key}-{path}", amount=MOVED_MINOR)

    def _lose(self, victims: list[Victim]) -> int:
        ids: dict[str, list[str]] = {loses: [] for loses in _LEFT_BEHIND}
        for victim in victims:
            ids[victim.loses].append(str(victim.uuid))
        try:
            return self._database.lose(
                Losses(
                    all_of_it=ids["payment"],
                    after_the_claim=ids["outcome"],
                    movements=[*ids["refund"], *ids["capture"]],
                )
            )
        except Unreachable as error:
            raise CannotLose(
                f"The local database cannot be reached as its owner: {error}"
            ) from error

    def _repeat(self, victims: list[Victim]) -> int:
        """Send the same keys until each has its final answer; returns the number without one."""
        give_up_at_s = monotonic() + ANSWERED_WITHIN_S
        waiting = list(victims)
        while waiting and monotonic() < give_up_at_s:
            waiting = [victim for victim in waiting if not self._is_answered(victim)]
            if waiting:
                self._wait(AGAIN_S)
        self._run.tell(f"{len(victims) - len(waiting)} of {len(victims)} keys have their answer")
        return len(waiting)

    def _is_answered(self, victim: Victim) -> bool:
        status, _ = self._post_payment(victim.loses, victim.key)
        if victim.loses in ("refund", "capture"):
            status, _ = self._post_movement(victim)
        return status in (200, 201)

    def _judged(self, victims: list[Victim]) -> list[RuleResult]:
        """Compares the provider's records of each victim with the single request for it."""
        broken = dict.fromkeys(_RULE_OF.values(), 0)
        for victim in victims:
            moved = self._sandbox.moved(victim.key)
            for kind, asked in _LEFT_BEHIND[victim.loses].items():
                rule = _RULE_OF.get(kind)
                if rule is not None:
                    broken[rule] += moved.get(kind, []) != asked
        return [
            rule_result("provider", f"{name}_after_loss", many) for name, many in broken.items()
        ]

    def _post(self, path: str, key: str, **body: Any) -> tuple[int | None, dict[str, Any]]:
        headers = {
            "Authorization": f"Bearer {self._api_key}",
            "Idempotency-Key": key,
            "X-Request-Id": key[-64:],
        }
        try:
            answer = self._session.post(
                self._url + path, json=body, headers=headers, timeout=ANSWER_TIMEOUT_S
            )
            found = answer.json()
        except (requests.RequestException, ValueError):
            return None, {}
        return answer.status_code, found if isinstance(found, dict) else {}
