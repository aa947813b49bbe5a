"""`Prefer: wait=N` and `respond-async`: what is honoured, and how many may wait."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest
from flask import Flask

from service.payments.charge.model import Status
from service.resilience.deadline import Deadline
from service.web.http.preferences import ANSWER_NEEDS_S, Waiting, parse_wait_s, prefers_async
from tests.support.providers.fakes import FakeClock

APP = Flask("preferences")


def payment(status: Status) -> Any:
    return SimpleNamespace(status=status)


@pytest.mark.parametrize(
    ("prefer", "is_async"),
    [
        ("respond-async", True),
        ("wait=5, respond-async", True),
        ("respond-async; wait=5", True),
        ("Respond-Async", True),
        ("respond-asynchronously", False),
        ("wait=5", False),
        ("", False),
    ],
)
def test_respond_async_is_read_among_other_preferences(prefer: str, is_async: bool) -> None:
    with APP.test_request_context(headers={"Prefer": prefer}):
        assert prefers_async() is is_async


@pytest.mark.parametrize(
    ("prefer", "wait_s"),
    [("wait=5", 5.0), ("WAIT=5", 5.0), ('foo; a, Wait = "7"', 7.0), ("wait=99", 10.0), ("", 0.0)],
)
def test_wait_is_read_in_any_case_and_bounded(prefer: str, wait_s: float) -> None:
    assert parse_wait_s(prefer) == wait_s


def test_a_wait_ends_when_the_payment_settles() -> None:
    looks = iter([Status.UNKNOWN, Status.UNKNOWN, Status.SUCCEEDED])

    with APP.test_request_context(headers={"Prefer": "wait=9"}):
        seen, has_waited = Waiting(waiters=1).until_settled(
            lambda deadline: payment(next(looks)), Deadline.after(60)
        )

    assert (seen.status, has_waited) == (Status.SUCCEEDED, True)


def test_a_wait_ends_in_time_to_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = FakeClock()
    monkeypatch.setattr("service.resilience.deadline.monotonic", clock)
    monkeypatch.setattr("service.web.http.preferences.sleep", clock.move)
    deadline = Deadline.after(5)

    with APP.test_request_context(headers={"Prefer": "wait=9"}):
        seen, _ = Waiting(waiters=1).until_settled(
            lambda deadline: payment(Status.UNKNOWN), deadline
        )

    assert seen.status is Status.UNKNOWN
    assert deadline.remaining_s() == pytest.approx(ANSWER_NEEDS_S)


def test_who_finds_all_waiting_places_taken_is_answered_at_once() -> None:
    waiting = Waiting(waiters=1)
    is_waiting, settled = threading.Event(), threading.Event()
    first_looks: list[int] = []

    def look(deadline: Deadline) -> Any:
        first_looks.append(1)
        # The first look comes before its place is taken, the second after.
        if len(first_looks) > 1:
            is_waiting.set()
        return payment(Status.SUCCEEDED if settled.is_set() else Status.UNKNOWN)

    def wait_for_it() -> None:
        with APP.test_request_context(headers={"Prefer": "wait=10"}):
            waiting.until_settled(look, Deadline.after(60))

    first = threading.Thread(target=wait_for_it)
    first.start()
    assert is_waiting.wait(60)
    looks: list[int] = []
    with APP.test_request_context(headers={"Prefer": "wait=9"}):
        _, has_waited = waiting.until_settled(
            lambda deadline: looks.append(1) or payment(Status.UNKNOWN), Deadline.after(60)
        )
    settled.set()
    first.join(60)

    assert not has_waited
    assert looks == [1]


@pytest.mark.parametrize("prefer", ["", "wait=0", "wait=x", "wait=-1"])
def test_without_a_wait_one_look_is_the_answer(prefer: str) -> None:
    looks: list[int] = []

    with APP.test_request_context(headers={"Prefer": prefer}):
        _, has_waited = Waiting(waiters=1).until_settled(
            lambda deadline: looks.append(1) or payment(Status.UNKNOWN), Deadline.after(5)
        )

    assert (looks, has_waited) == ([1], False)
