"""Control client of the sandbox provider: faults above the network, each with a time limit."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import requests

ANSWER_TIMEOUT_S = 3.0


class Sandbox:
    """The sandbox's control endpoint."""

    def __init__(self, url: str, ca_file: Path | None) -> None:
        self._url = f"{url.rstrip('/')}/_control"
        self._books_url = f"{url.rstrip('/')}/_books"
        self._verify = str(ca_file) if ca_file else True

    def inject(self, plan: Mapping[str, Any]) -> None:
        """Activate a plan; its `ttl_s` ends it without further orders."""
        with self._session() as session:
            answer = session.post(
                self._url, json=dict(plan), verify=self._verify, timeout=ANSWER_TIMEOUT_S
            )
            answer.raise_for_status()

    def injections(self) -> int:
        """The number of calls that the active plan has faulted so far."""
        with self._session() as session, contextlib.suppress(requests.RequestException, ValueError):
            answer = session.get(self._url, verify=self._verify, timeout=ANSWER_TIMEOUT_S)
            return sum(answer.json()["struck"].values())
        return 0

    def moved(self, reference: str) -> dict[str, list[int]]:
        """The amounts that a payment moved in the sandbox's books, by kind; raises on no answer."""
        moved: dict[str, list[int]] = {}
        with self._session() as session:
            answer = session.get(
                self._books_url,
                params={"reference": reference},
                verify=self._verify,
                timeout=ANSWER_TIMEOUT_S,
            )
            answer.raise_for_status()
            for movement in answer.json()["movements"]:
                moved.setdefault(movement["kind"], []).append(movement["amount"])
        return moved

    def clear(self) -> None:
        """End all faults; an unreachable sandbox ends them at their TTL."""
        with self._session() as session, contextlib.suppress(requests.RequestException):
            session.delete(self._url, verify=self._verify, timeout=ANSWER_TIMEOUT_S)

    @staticmethod
    def _session() -> requests.Session:
        session = requests.Session()
        session.trust_env = False
        return session
