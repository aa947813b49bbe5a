"""The pager of a local run reports each alert once, and refuses anything but a message."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import requests

from service.lab.observe.pager import Pager


def alert(name: str, status: str = "firing", **labels: str) -> dict[str, Any]:
    annotations = {"summary": f"{name} hurts."}
    return {
        "status": status,
        "labels": {"alertname": name, **labels},
        "annotations": annotations,
    }


def send(pager: Pager, receiver: str, *alerts: dict[str, Any]) -> None:
    answer = requests.post(f"http://{pager.bind}/{receiver}", json={"alerts": alerts}, timeout=60)
    assert answer.status_code == 204


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
def pager(told: list[str]) -> Iterator[Pager]:
    with Pager(told.append) as pager:
        yield pager


def test_a_group_that_is_told_again_is_no_news(pager: Pager, told: list[str]) -> None:
    send(pager, "pages", alert("BreakerOpen"))

    send(pager, "pages", alert("BreakerOpen"), alert("PoolTimeouts"))

    assert told == [
        "PAGE    BreakerOpen: BreakerOpen hurts.",
        "PAGE    PoolTimeouts: PoolTimeouts hurts.",
    ]


def test_one_alert_on_two_instances_is_two_pieces_of_news(pager: Pager, told: list[str]) -> None:
    send(pager, "pages", alert("BreakerOpen", instance="a"), alert("BreakerOpen", instance="b"))

    assert len(told) == 2


def test_windows_of_one_budget_are_told_apart(pager: Pager, told: list[str]) -> None:
    windows = [alert("QuickAnswersBudgetBurn", long_window=window) for window in ("1h", "6h")]

    send(pager, "pages", *windows)

    assert [line.split(":")[0][-4:] for line in told] == ["(1h)", "(6h)"]


def test_its_end_is_told_and_its_return_is_news_again(pager: Pager, told: list[str]) -> None:
    for status in ("firing", "resolved", "firing"):
        send(pager, "tickets", alert("NeedsReview", status))

    assert [line.split()[0] for line in told] == ["ticket", "over", "ticket"]


def test_only_pages_notify_and_only_once_while_firing(pager: Pager) -> None:
    send(pager, "pages", alert("BreakerOpen"))
    send(pager, "drills", alert("PoolTimeouts"))
    woken_by = pager.woken_by()

    pager.forget()
    send(pager, "pages", alert("BreakerOpen"))

    assert woken_by == {"BreakerOpen"}
    assert pager.woken_by() == set()


@pytest.mark.parametrize("body", ["", "[]", "{}", "no JSON", '{"alerts": [{"labels": {}}]}'])
def test_what_is_no_message_is_refused_and_not_told(
    pager: Pager, told: list[str], body: str
) -> None:
    answer = requests.post(f"http://{pager.bind}/pages", data=body, timeout=60)

    assert answer.status_code in (400, 413)
    assert told == []
