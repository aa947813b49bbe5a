"""Any order of payments, retries, lost commits and sweeps: one charge for each client key.

The two sets of books are a scripted provider's and our own in PostgreSQL. A loss comes with the sign
that a failover or restore leaves: another server runs the claims.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from service.errors import Busy
from service.payments.charge.model import ChargeRequest, Status
from service.payments.settling.recovery import Recovery
from tests.support.charge_requests import charge_request
from tests.support.providers.scripted_books import Rule
from tests.support.providers.scripted_provider import ScriptedProvider, scripted_provider
from tests.support.stack.lost_commits import FLOWS, Rig, lossy_rigs
from tests.support.stack.settling import MERCHANT, soon

KEYS = 3
EXAMPLES = 15

steps = st.lists(
    st.one_of(
        st.tuples(st.just("pay"), st.integers(0, KEYS - 1), st.booleans()),
        st.tuples(st.sampled_from(["lose", "set_back"]), st.integers(0, 2)),
        st.tuples(st.sampled_from(["sweep", "work", "check", "lose_an_answer"])),
    ),
    min_size=3,
    max_size=9,
)


@pytest.fixture(scope="module")
def running() -> Iterator[ScriptedProvider]:
    with scripted_provider() as provider:
        yield provider


class Callers:
    """Requests with a few client keys, against a service that forgets."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.recovery = Recovery(rig.service.pool, rig.service.provider.name, in_flight_s=0.0)
        self.asked: dict[int, ChargeRequest] = {}

    def pay(self, key: int, respond_async: bool = False) -> None:
        asked = self.asked.setdefault(key, charge_request(MERCHANT, respond_async=respond_async))
        # Busy: not accepted, so the same key may come again.
        with contextlib.suppress(Busy):
            self.rig.pay(asked)

    def lose(self, newest: int) -> None:
        """The newest payments have no row any more; a restore goes back to one moment."""
        self.rig.lose_newest(newest + 1)
        self.rig.fail_over()

    def set_back(self, newest: int) -> None:
        """The newest payments are as their claim left them."""
        self.rig.set_back_newest(newest + 1)
        self.rig.fail_over()

    def sweep(self) -> None:
        self.rig.sweep()

    def work(self) -> None:
        self.rig.work(rounds=1)

    def check(self) -> None:
        self.recovery.check(soon())

    def lose_an_answer(self) -> None:
        """The provider executes the next confirm, and its answer is an error."""
        self.rig.scripted.script(Rule("confirm", status=504, times=1))


@pytest.mark.parametrize("flow", FLOWS)
def test_no_order_of_losses_and_retries_charges_a_key_twice(
    running: ScriptedProvider, pool: Any, owner_url: str, flow: str
) -> None:
    with lossy_rigs(running, pool, owner_url) as rigs:
        rig = rigs(flow)

        @example([("pay", 0, False), ("lose", 2), ("pay", 0, False)])
        @settings(
            max_examples=EXAMPLES,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(done=steps)
        def explore(done: list[tuple[Any, ...]]) -> None:
            rig.begin_again()
            # To clear the books is to honour keys again.
            running.honour_keys(FLOWS[flow][2])
            callers = Callers(rig)
            for name, *arguments in done:
                act: Callable[..., None] = getattr(callers, name)
                act(*arguments)
                assert rig.charges <= len(callers.asked)
            _settle(callers)
            assert rig.charges == len(callers.asked)

        explore()


def _settle(callers: Callers) -> None:
    """Every key comes once more, and everything settles: each is one payment that succeeded."""
    rig = callers.rig
    rig.scripted.clear()
    rig.sweep()
    callers.check()
    for asked in callers.asked.values():
        rig.pay(asked)
    rig.work()
    for asked in callers.asked.values():
        assert rig.pay(asked).status is Status.SUCCEEDED
