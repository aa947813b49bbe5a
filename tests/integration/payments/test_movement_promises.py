"""Every answer about a refund stays true, also when the database stalls at any moment."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from service.database.pool.pool import ConnectionPool
from service.errors import AcceptanceUnknown, Busy
from service.payments.movements.model import Kind, Movement, MovementStatus
from service.resilience.deadline import Deadline
from tests.support.processes.database_link import DatabaseLink
from tests.support.providers.booked_provider import BookedProvider, refused, unknown
from tests.support.stack.moving import Moving, request
from tests.support.stack.pools import open_pool_of

ANSWERED_S = 0.5
# Before the claim is sent, while it runs, while the provider works, while the outcome is written.
STALLS_AFTER_S = (0.0, 0.001, 0.002, 0.004, 0.008, 0.016)


@pytest.fixture
def link(database_url: str) -> Iterator[DatabaseLink]:
    link = DatabaseLink(database_url)
    yield link
    link.close()


@pytest.fixture
def moving(pool: ConnectionPool) -> Moving:
    """As the reconciler, with a healthy link."""
    return Moving(pool, BookedProvider())


@pytest.fixture
def web(moving: Moving, link: DatabaseLink) -> Iterator[Moving]:
    """As the caller's worker, at the same provider."""
    with open_pool_of(2, link.url, max_waiters=16) as pool:
        yield Moving(pool, moving.provider)


def stall_while_refunding(moving: Moving, link: DatabaseLink) -> None:
    def stall() -> None:
        if moving.provider.calls[-1] == "refund":
            link.stall()

    moving.provider.during_call = stall


def restore(moving: Moving, link: DatabaseLink) -> None:
    moving.provider.during_call = lambda: None
    # A hanging statement never arrives, as after the loss of the worker's machine.
    link.lose()


@pytest.mark.parametrize("answer", [unknown(), refused()])
def test_a_promise_that_could_not_be_written_is_not_made(moving, web, link, answer):
    payment = moving.pay()
    moving.provider.next_answers["refund"] = [answer]
    stall_while_refunding(moving, link)

    with pytest.raises(AcceptanceUnknown):
        web.refund(payment, 700)
    restore(moving, link)
    (settled,) = moving.settle()

    assert settled.withdrawn
    assert moving.provider.calls.count("refund") == 1
    assert moving.amounts(payment) == (2599, 0, 0, 0)


def test_what_was_executed_and_not_written_is_adopted(moving, web, link):
    payment = moving.pay()
    stall_while_refunding(moving, link)

    told = web.refund(payment, 700)
    restore(moving, link)
    (settled,) = moving.settle()

    assert (told.status, told.promised) == (MovementStatus.SENDING, True)
    assert settled.status is MovementStatus.SUCCEEDED
    assert moving.amounts(payment) == (2599, 700, 0, 0)


@pytest.mark.parametrize("stalls_after_s", STALLS_AFTER_S)
def test_a_refusal_under_a_stalled_database_moves_nothing(moving, web, link, stalls_after_s):
    payment = moving.pay()
    stall = threading.Timer(stalls_after_s, link.stall)
    stall.start()
    told: Movement | Busy
    try:
        wanted = request(Kind.REFUND, payment, 700)
        told = web.handler.process(wanted, Deadline.after(ANSWERED_S))[0]
    except Busy as refusal:
        told = refusal
    stall.join()
    restore(moving, link)

    for _ in range(2):
        moving.settle()

    refunded = len(moving.provider.refunded)
    if isinstance(told, Movement):
        assert refunded == 1
    elif not isinstance(told, AcceptanceUnknown):
        assert refunded == 0
    assert moving.amounts(payment) == (2599, 700 * refunded, 0, 0)
