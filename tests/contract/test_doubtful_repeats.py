"""Repeats of doubtful calls, allowed and forbidden: 5xx, a success at prepare, expiry, races."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from service.database.pool.pool import ConnectionPool, Statement
from service.payments.charge.model import Status
from tests.support.providers.scripted_books import Rule
from tests.support.providers.scripted_provider import ScriptedProvider, scripted_provider
from tests.support.stack.settling import Service, soon

ONE_CALL = {"one_shot": "stripe", "charges": "stripe_charges"}


@pytest.fixture(scope="module")
def running() -> Iterator[ScriptedProvider]:
    with scripted_provider() as provider:
        yield provider


@pytest.fixture
def scripted(running: ScriptedProvider) -> ScriptedProvider:
    running.clear(books=True)
    return running


@pytest.fixture(params=list(ONE_CALL))
def one_call(
    request: pytest.FixtureRequest, scripted: ScriptedProvider, pool: ConnectionPool
) -> Iterator[Service]:
    with scripted.adapter(ONE_CALL[request.param], flow="one_shot") as provider:
        yield Service(pool, provider, quiescence_s=5.0)


@pytest.fixture
def two_phase(scripted: ScriptedProvider, pool: ConnectionPool) -> Iterator[Service]:
    with scripted.adapter() as provider:
        yield Service(pool, provider)


def keys(scripted: ScriptedProvider) -> list[str]:
    return [one["key"] for one in scripted.requests("create_confirmed")]


def charges(scripted: ScriptedProvider) -> int:
    return len(scripted.movements(None, "charge"))


# --- 5xx is doubt -----------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [500, 502, 503, 504])
def test_a_look_ups_5xx_is_no_proof_of_absence(one_call, scripted, status):
    """A gateway answers for a call that is executed later."""
    scripted.script(
        Rule("create_confirmed", status=status, execute="later"),
        Rule("create_confirmed", status=status, execute="never", times=3),
    )
    payment = one_call.pay()

    for _ in range(3):
        one_call.age(60)
        one_call.settle()
    scripted.execute_held()
    one_call.age(60)
    one_call.settle()

    assert len(set(keys(scripted))) == 1
    assert one_call.read(payment).status is Status.SUCCEEDED
    assert charges(scripted) == 1


def test_next_key_needs_a_saved_5xx_and_no_entry_in_the_books(one_call, scripted):
    scripted.script(Rule("create_confirmed", status=500, execute="never", save=True))
    payment = one_call.pay()
    one_call.age(60)

    one_call.settle()  # The same key, replayed: spent, and sent just now.
    one_call.settle()  # The payment is not settled since then.
    before = list(keys(scripted))
    one_call.age(60)
    one_call.settle()

    assert len(before) == 2
    assert len(set(before)) == 1
    assert len(set(keys(scripted))) == 2
    assert one_call.read(payment).status is Status.SUCCEEDED
    assert charges(scripted) == 1


def test_a_saved_5xx_that_was_executed_late_is_found(one_call, scripted):
    scripted.script(Rule("create_confirmed", status=500, execute="later", save=True))
    payment = one_call.pay()
    one_call.age(60)
    one_call.settle()

    scripted.execute_held()
    one_call.age(60)
    one_call.settle()

    assert one_call.read(payment).status is Status.SUCCEEDED
    assert charges(scripted) == 1


def test_what_is_sent_again_is_written_down_before(one_call, scripted, pool):
    scripted.script(Rule("create_confirmed", status=503, execute="never", times=2))
    one_call.pay()
    one_call.age(60)

    one_call.settle()

    rows = pool.run(
        Statement("sent", "SELECT extract(epoch FROM now() - sent_at)::float8 FROM payments"),
        {},
        soon(),
    )
    assert rows[0][0] < 50


def test_one_call_sends_nothing_after_expiry(one_call, scripted, pool):
    scripted.script(Rule("create_confirmed", status=503, execute="never"))
    payment = one_call.pay(expires_at=datetime.now(UTC) + timedelta(hours=1))
    late = "UPDATE payments SET expires_at = now() RETURNING 1"
    pool.run(Statement("late", late), {}, soon())
    one_call.age(60)

    one_call.settle()

    assert len(keys(scripted)) == 1
    assert one_call.read(payment).status is Status.NOT_EXECUTED


def test_a_saved_5xx_of_a_prepare_is_followed_by_the_next_series(two_phase, scripted):
    scripted.script(Rule("create", status=500, execute="never", save=True))
    payment = two_phase.pay()

    for _ in range(3):
        two_phase.make_due()
        two_phase.drain()

    made = [one["key"] for one in scripted.requests("create")]
    assert two_phase.read(payment).status is Status.SUCCEEDED
    assert len(set(made)) == 2
    assert charges(scripted) == 1


# --- A success at prepare ---------------------------------------------------------------------------


@pytest.mark.parametrize("capture", ["automatic", "manual"])
def test_money_that_moved_at_prepare_is_doubt_and_moves_once(two_phase, scripted, capture):
    scripted.script(Rule("create", as_confirmed=True, times=None))
    payment = two_phase.pay(capture_method=capture)
    for _ in range(3):
        two_phase.make_due()
        two_phase.drain()
        two_phase.settle()

    expected = Status.SUCCEEDED if capture == "automatic" else Status.REQUIRES_CAPTURE
    assert payment.status is Status.UNKNOWN
    assert two_phase.read(payment).status is expected
    assert len(scripted.requests("create")) == 1


@pytest.mark.parametrize(
    "patch",
    [
        {"status": "canceled"},
        {"status": "requires_action"},
        {"status": "processing"},
        {"status": "requires_payment_method"},
        {"status": "succeeded", "amount_received": 2599},
        {"amount": 1},
        {"metadata": {}},
        {"object": "charge"},
    ],
)
def test_any_other_answer_to_prepare_is_doubt_and_makes_no_other(two_phase, scripted, patch):
    scripted.script(Rule("create", patch=patch, times=None))
    payment = two_phase.pay()

    for _ in range(4):
        two_phase.make_due()
        two_phase.drain()
        two_phase.settle()

    assert payment.status is Status.UNKNOWN
    assert len(scripted.requests("create")) == 1
    assert two_phase.read(payment).status is not Status.NOT_EXECUTED
    assert charges(scripted) <= 1


def test_success_missing_in_the_books_is_never_not_executed(two_phase, scripted):
    lie = {
        "id": "pi_never",
        "object": "payment_intent",
        "status": "succeeded",
        "amount": 1,
        "currency": "usd",
        "metadata": {},
    }
    scripted.script(Rule("create", status=200, body=lie, execute="never"))
    payment = two_phase.pay()

    for _ in range(3):
        two_phase.age(60)
        two_phase.settle()

    assert two_phase.read(payment).status is Status.UNKNOWN


# --- Races ------------------------------------------------------------------------------------------


def test_a_resolve_while_a_call_is_under_way_is_refused(two_phase, scripted):
    scripted.script(Rule("confirm", status=503, execute="never"))
    payment = two_phase.pay()
    two_phase.make_due()
    (leased,) = two_phase.leases.lease_look_ups(1, soon())

    during = two_phase.store.resolve(
        payment, Status.NOT_EXECUTED, "seen on their page", "key", soon()
    )
    two_phase.reconciler.settle(leased, soon())

    assert during is None
    assert two_phase.read(payment).status is Status.SUCCEEDED


def test_resolved_payment_is_not_sent_by_an_earlier_look_up(two_phase, scripted, pool):
    scripted.script(Rule("confirm", status=503, execute="never"))
    payment = two_phase.pay()
    two_phase.make_due()
    (leased,) = two_phase.leases.lease_look_ups(1, soon())
    two_phase.make_due()  # Its lease is over.

    resolved = two_phase.store.resolve(
        payment, Status.NOT_EXECUTED, "seen on their page", "key", soon()
    )
    two_phase.reconciler.settle(leased, soon())

    assert resolved is not None
    assert two_phase.read(payment).status is Status.NOT_EXECUTED
    assert len(scripted.requests("confirm")) == 1
    assert charges(scripted) == 0


def test_many_workers_on_one_doubt_charge_once(one_call, scripted):
    scripted.script(Rule("create_confirmed", status=500, execute="never", save=True))
    one_call.pay()

    def work() -> None:
        for _ in range(4):
            one_call.age(60)
            one_call.settle()

    workers = [threading.Thread(target=work) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    at_most_one = charges(scripted)
    # In every round the workers may have met each other's leases; a single worker then settles it.
    for _ in range(4):
        one_call.age(60)
        one_call.settle()

    assert at_most_one <= 1
    assert charges(scripted) == 1


def test_what_expires_while_it_is_prepared_is_not_confirmed(two_phase, scripted):
    scripted.script(Rule("create", delay_s=0.6))

    payment = two_phase.pay(expires_at=datetime.now(UTC) + timedelta(milliseconds=300))
    for _ in range(3):
        two_phase.settle()

    assert scripted.requests("confirm") == []
    assert two_phase.read(payment).status is Status.NOT_EXECUTED


def test_a_refusal_of_the_next_series_is_no_proof_about_the_last(one_call, scripted):
    """The first call was executed after all, with the money of the second."""
    scripted.script(Rule("create_confirmed", status=500, save=True, execute="later"))
    payment = one_call.pay()
    one_call.settle()
    one_call.age(by_s=6)
    used = {"error": {"type": "invalid_request_error", "message": "The token was used before."}}
    scripted.script(Rule("create_confirmed", status=400, body=used, execute="never"))
    one_call.settle()
    during = one_call.read(payment)
    scripted.execute_held()
    one_call.settle()

    assert during.key_series == 2
    assert during.status is Status.UNKNOWN
    assert one_call.read(payment).status is Status.SUCCEEDED
    assert charges(scripted) == 1
