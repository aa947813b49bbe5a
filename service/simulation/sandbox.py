"""Orders to the sandbox provider: faults above the network, with an end of their own."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import requests

ANSWER_TIMEOUT_S = 3.0


class Sandbox:
    """The sandbox's control address."""

    def __init__(self, url: str, ca_file: Path | None) -> None:
        self._url = f"{url.rstrip('/')}/_control"
        self._books_url = f"{url.rstrip('/')}/_books"
        self._verify = str(ca_file) if ca_file else True

    def strike(self, plan: Mapping[str, Any]) -> None:
        """Put a plan in force; with its `ttl_s` it ends by itself."""
        with self._session() as session:
            answer = session.post(
                self._url, json=dict(plan), verify=self._verify, timeout=ANSWER_TIMEOUT_S
            )
            answer.raise_for_status()

    def struck(self) -> int:
        """How many calls the plan in force has struck so far."""
        with self._session() as session, contextlib.suppress(requests.RequestException, ValueError):
            answer = session.get(self._url, verify=self._verify, timeout=ANSWER_TIMEOUT_S)
            return sum(answer.json()["struck"].values())
        return 0

    def moved(self, reference: str) -> dict[str, list[int]]:
        """What its books say of a payment: the amounts that moved, by kind; raises on no answer."""
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
        """No faults any more; unreachable, it ends them by itself."""
        with self._session() as session, contextlib.suppress(requests.RequestException):
            session.delete(self._url, verify=self._verify, timeout=ANSWER_TIMEOUT_S)

    @staticmethod
    def _session() -> requests.Session:
        session = requests.Session()
        session.trust_env = False
        return session
