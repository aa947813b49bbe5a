"""The background sends only what was promised: after 503 nothing is charged, after 202 nothing lost."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from uuid import uuid4

import pytest

from service.database.pool.pool import ConnectionPool, Statement
from service.errors import AcceptanceUnknown, Busy, KeyInFlight, ProviderUnavailable
from service.payments.charge.handler import charge_of
from service.payments.charge.model import ChargeRequest, Payment, Status
from service.resilience.deadline import Deadline
from tests.support.charge_requests import charge_request
from tests.support.processes.database_link import DatabaseLink
from tests.support.providers.booked_provider import BookedProvider, refused, unknown
from tests.support.stack.pools import open_pool_of
from tests.support.stack.settling import MERCHANT, Service, soon

# Of a request on a stalled database.
PATIENCE_S = 0.5


class Worker(Service):
    """A worker with a database link that can be stalled; `background` has a separate link."""

    def __init__(self, pool: ConnectionPool, provider: BookedProvider, link: DatabaseLink) -> None:
        super().__init__(pool, provider)
        self.link = link

    def ask(self, request: ChargeRequest, within_s: float = PATIENCE_S) -> Payment:
        return self.handler.process_payment(request, Deadline.after(within_s))[0]


@pytest.fixture
def link(database_url: str) -> Iterator[DatabaseLink]:
    link = DatabaseLink(database_url)
    yield link
    link.close()


@pytest.fixture
def provider() -> BookedProvider:
    return BookedProvider()


@pytest.fixture
def worker(link: DatabaseLink, provider: BookedProvider) -> Iterator[Worker]:
    with open_pool_of(2, link.url) as pool:
        worker = Worker(pool, provider, link)
        # Its statements are prepared by now.
        worker.ask(request(reference="warm"), within_s=60)
        provider.calls.clear()
        yield worker


@pytest.fixture
def background(pool: ConnectionPool, provider: BookedProvider) -> Service:
    return Service(pool, provider)


def request(**changes: object) -> ChargeRequest:
    return charge_request(MERCHANT, **changes)


def charged(provider: BookedProvider) -> list[str | None]:
    """The references of what was charged, once for each time."""
    references = [charge.reference for charge in provider.charged.values()]
    return [reference for reference in references if reference != "warm"]


def rounds(service: Service, times: int = 4) -> None:
    for _ in range(times):
        service.make_due()
        service.drain()
        service.settle()


def statuses(pool: ConnectionPool) -> list[str]:
    rows = pool.run(
        Statement("told", "SELECT status FROM payments ORDER BY payment_id"), {}, soon()
    )
    return [status for (status,) in rows]


def died_after_claim(service: Service, asked: ChargeRequest) -> Payment:
    """The state after a worker's kill: claimed, leased, and without a promise."""
    payment, _ = service.store.claim(asked, soon(), provider="fake", status=Status.ACCEPTED)
    return payment


# --- No promise, no call to the provider ------------------------------------------------------------


@pytest.mark.parametrize("on_outage", ["queue", "reject"])
def test_what_was_promised_to_nobody_is_ended_and_its_key_freed(background, on_outage):
    asked = request(on_outage=on_outage)
    died = died_after_claim(background, asked)

    rounds(background)
    again = background.handler.process_payment(asked, soon())

    assert background.read(died).status is Status.NOT_EXECUTED
    assert (again[0].status, again[1]) == (Status.SUCCEEDED, True)
    assert again[0].payment_id != died.payment_id
    assert len(charged(background.provider)) == 1


def test_while_its_lease_runs_a_retry_is_in_flight(background):
    asked = request()
    died_after_claim(background, asked)

    with pytest.raises(KeyInFlight):
        background.handler.process_payment(asked, soon())


def test_a_retry_after_the_lease_is_promised_before_it_is_told(background):
    asked = request()
    died = died_after_claim(background, asked)
    background.make_due()

    again, is_new = background.handler.process_payment(asked, soon())
    rounds(background)

    assert (again.payment_id, again.promised, is_new) == (died.payment_id, True, False)
    assert background.read(died).status is Status.SUCCEEDED
    assert len(charged(background.provider)) == 1


def test_a_rejecting_retry_is_never_queued(background):
    asked = request(on_outage="reject")
    died_after_claim(background, asked)
    background.make_due()

    with pytest.raises(KeyInFlight):
        background.handler.process_payment(asked, soon())
    rounds(background)

    assert charged(background.provider) == []


@pytest.mark.parametrize("two_phase", [True, False])
def test_respond_async_queues_no_rejecting_payment(pool, two_phase):
    service = Service(pool, BookedProvider(refused(), refused(), two_phase=two_phase))
    asked = request(on_outage="reject", respond_async=True)

    with pytest.raises(ProviderUnavailable):
        service.handler.process_payment(asked, soon())
    rounds(service)

    assert statuses(pool) == ["not_executed"]
    assert charged(service.provider) == []


def test_no_promise_is_made_while_a_noted_charge_is_ended(background):
    asked = request()
    died = died_after_claim(background, asked)
    noted = background.store.note_reference(
        died, background.provider.prepare(charge_of(died), soon()), soon()
    )
    background.make_due()
    (leased,) = background.leases.lease_look_ups(8, soon())

    promised = background.store.promise(noted, soon())
    ended = background.reconciler.settle(leased, soon())

    assert promised is None
    assert (ended.status, ended.promised) == (Status.NOT_EXECUTED, False)


def test_a_promise_and_an_end_decide_by_one_row(background):
    asked = request()
    died = died_after_claim(background, asked)
    background.make_due()
    (leased,) = background.leases.lease_queued(8, soon())

    promised = background.store.promise(died, soon())
    is_ended = background.store.withdraw(leased, "promised to nobody", soon(), spent=True)

    assert promised is not None
    assert not is_ended


def test_many_retries_of_a_freed_key_begin_one_payment(background):
    asked = request()
    died_after_claim(background, asked)
    rounds(background)
    together = threading.Barrier(6)

    def pay() -> None:
        together.wait(60)
        try:
            background.handler.process_payment(asked, soon())
        except KeyInFlight:
            return

    callers = [threading.Thread(target=pay) for _ in range(6)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(60)

    assert len(charged(background.provider)) == 1


def test_noted_payment_without_a_promise_is_canceled(background):
    asked = request()
    died = died_after_claim(background, asked)
    prepared = background.provider.prepare(charge_of(died), soon())
    background.store.note_reference(died, prepared, soon())

    rounds(background)

    assert background.read(died).status is Status.NOT_EXECUTED
    assert background.provider.calls.count("confirm") == 0
    assert background.provider.calls.count("cancel") == 1
    assert background.handler.process_payment(asked, soon())[1]


def test_one_call_that_died_unpromised_is_not_sent_again(pool):
    background = Service(pool, BookedProvider(two_phase=False))
    background.store.claim(request(), soon(), provider="fake", status=Status.SENDING)

    rounds(background)

    assert background.provider.calls.count("confirm") == 0
    assert statuses(pool) == ["not_executed"]


# --- Withdrawn at once ------------------------------------------------------------------------------


@pytest.mark.parametrize("refusing", ["prepare", "confirm"])
def test_a_retry_during_a_withdrawal_is_never_told_202(pool, refusing):
    asked = request(on_outage="reject")
    told: list[object] = []
    refusals = (refused(),)
    provider = (
        BookedProvider(prepares=refusals) if refusing == "prepare" else BookedProvider(*refusals)
    )
    service = Service(pool, provider)
    withdraw = service.store.withdraw

    def retried(*given: object, **more: object) -> bool:
        try:
            told.append(service.handler.process_payment(asked, soon()))
        except Busy as error:
            told.append(error.code)
        return withdraw(*given, **more)  # type: ignore[arg-type]

    # The moment between the provider's answer and our write.
    service.store.withdraw = retried  # type: ignore[method-assign,assignment]
    with pytest.raises(ProviderUnavailable):
        service.handler.process_payment(asked, soon())

    assert told == ["idempotency_key_in_flight"]
    assert statuses(pool) == ["not_executed"]


# --- Commits in doubt -------------------------------------------------------------------------------


@pytest.mark.parametrize("arrives", [True, False])
@pytest.mark.parametrize("on_outage", ["queue", "reject"])
def test_a_claim_in_doubt_is_503_and_never_charged(worker, background, on_outage, arrives):
    asked = request(on_outage=on_outage)
    worker.link.stall()
    with pytest.raises(Busy) as refusal:
        worker.ask(asked)
    _recover(worker.link, arrives=arrives)

    rounds(background)

    assert refusal.value.code == "database_unavailable"
    assert charged(background.provider) == []
    paid, is_new = background.handler.process_payment(asked, soon())
    assert (paid.status, is_new) == (Status.SUCCEEDED, True)


@pytest.mark.parametrize("arrives", [True, False])
def test_promise_in_doubt_is_resolved_by_the_same_key(worker, background, arrives):
    asked = request(respond_async=True)
    worker.link.stall()
    with pytest.raises(AcceptanceUnknown):
        worker.ask(asked)
    _recover(worker.link, arrives=arrives)

    rounds(background)
    again, _ = background.handler.process_payment(asked, soon())
    rounds(background)

    assert background.read(again).status is Status.SUCCEEDED
    assert len(charged(background.provider)) == 1


@pytest.mark.parametrize("arrives", [True, False])
def test_a_note_in_doubt_is_503_and_never_charged(worker, background, provider, arrives):
    provider.during_call = worker.link.stall
    with pytest.raises(Busy) as refusal:
        worker.ask(request(), within_s=4)
    provider.during_call = lambda: None
    _recover(worker.link, arrives=arrives)

    rounds(background)

    assert refusal.value.code == "database_unavailable"
    assert charged(provider) == []
    assert statuses(background.pool)[-1] == "not_executed"


def test_an_outcome_that_could_not_be_written_is_found_out(worker, background, provider):
    calls = iter([lambda: None, worker.link.stall])
    provider.during_call = lambda: next(calls)()
    payment = worker.ask(request(), within_s=5)
    provider.during_call = lambda: None
    _recover(worker.link, arrives=False)

    rounds(background)

    assert payment.status is Status.SENDING
    assert background.read(payment).status is Status.SUCCEEDED
    assert len(charged(provider)) == 1


def test_no_503_is_charged_and_no_202_lost_on_a_slow_database(worker, background, provider):
    """Stalls at any moment of a payment, with a provider that fails as well."""
    chance = random.Random(20260330)  # A schedule, not a secret.
    refusals: list[ChargeRequest] = []
    promised: list[Payment] = []

    def maybe_stall() -> None:
        if chance.random() < 0.3:
            worker.link.stall()

    provider.during_call = maybe_stall
    for _ in range(24):
        provider.confirm_with(*chance.choice([(), (), (unknown(),), (refused(),)]))
        asked = request(on_outage=chance.choice(["queue", "reject"]), reference=str(uuid4()))
        maybe_stall()
        try:
            promised.append(worker.ask(asked))
        except AcceptanceUnknown:
            pass
        except Busy:
            refusals.append(asked)
        _recover(worker.link, arrives=chance.random() < 0.7)
    provider.during_call = lambda: None
    provider.confirm_with()

    rounds(background, times=8)

    paid = charged(provider)
    assert not {asked.reference for asked in refusals} & set(paid)
    assert len(paid) == len(set(paid))
    final = (Status.SUCCEEDED, Status.NOT_EXECUTED)
    assert all(background.read(payment).status in final for payment in promised)


def _recover(link: DatabaseLink, *, arrives: bool) -> None:
    """Let what stalled arrive late, or never."""
    if arrives:
        link.restore()
    link.lose()
    link.restore()
