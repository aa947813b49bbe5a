"""The tour waits on, whatever its programs answer for once."""

from __future__ import annotations

from service.lab.observe.pager import Pager
from service.lab.observe.session import recover, told_of_money
from service.lab.observe.site import Site
from tests.support.processes.fault_server import Peer, answer, fault_server

WELL = b"""holdfast_breaker_state{provider="stripe",state="closed"} 1
holdfast_unknown_oldest_age_seconds 0
holdfast_queued_oldest_age_seconds 0
"""


def test_an_answer_that_cannot_be_read_says_nothing() -> None:
    answers = [b"\xff garbage", b'holdfast_breaker_state{state="closed"} cut', WELL, WELL, WELL]

    def behave(peer: Peer) -> None:
        peer.read_request()
        peer.send(answer(200, answers.pop(0)))

    with fault_server(behave, tls=False) as server, Pager(lambda news: None) as pager:
        site = Site(run={"ops_url": server.url}, pager=pager, urls={})

        is_well = recover(site, within_s=10)

    assert is_well
    assert answers == []


def test_silent_ops_plane_leaves_money_unknown() -> None:
    def behave(peer: Peer) -> None:
        peer.read_request()

    with fault_server(behave, tls=False) as server, Pager(lambda news: None) as pager:
        told = told_of_money(Site(run={"ops_url": server.url}, pager=pager, urls={}), is_well=True)

    assert "did not answer" in told
