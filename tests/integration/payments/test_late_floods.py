"""A flood of foreign events costs a bounded number of questions, and delays nothing of ours."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from service.app.background import HINTS_AT_ONCE, Background
from service.app.rounds import FOREIGN_BURST, LATE_AT_ONCE, LateRounds
from service.database.direct import cursor_to
from service.resilience.call_budget import CallBudget
from tests.support.providers.booked_provider import BookedProvider
from tests.support.stack.settling import Service, soon

_WAITING = "SELECT count(*) FROM webhook_inbox WHERE due_at IS NOT NULL"


class AskedProvider(BookedProvider):
    """Counts the questions about charges."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    def identify(self, charge_ref, deadline):
        self.asked.append(charge_ref)
        return super().identify(charge_ref, deadline)


@pytest.fixture
def service(pool) -> Service:
    return Service(pool, AskedProvider())


def flood(url: str, events: int, *, type_: str = "refund.created", refs: int | None = None) -> None:
    """Events about charges of another program, older than whatever comes next."""
    with cursor_to(url) as cursor:
        cursor.execute(
            "INSERT INTO webhook_inbox (provider, event_id, type, provider_ref, due_at)"
            " SELECT 'fake', 'evt_' || %s || n, %s, 'pi_foreign' || n %% %s,"
            " now() - interval '1 h' FROM generate_series(1, %s) AS n",
            (type_, type_, refs or events, events),
        )


def hint(service: Service, event_id: str, charge_ref: str, type_: str = "charge.refunded") -> None:
    service.inbox.receive_webhook(
        soon(),
        provider="fake",
        event_id=event_id,
        type_=type_,
        provider_ref=charge_ref,
        merchant_id=None,
        payment_id=None,
    )


def late_round(service: Service, budget: CallBudget) -> int:
    """One round of the loop "late facts", with its work in this thread."""

    def run_all(call: Callable[[Any], bool], items: Any) -> list[bool]:
        return [call(item) for item in items]

    rounds = LateRounds(
        service.late, service.late_store, send_timeout_s=5.0, foreign_questions=budget
    )
    return rounds(run_all, soon())


def frozen() -> CallBudget:
    """The burst, and no more."""
    return CallBudget(per_s=0.0, burst=FOREIGN_BURST)


def checks(url: str) -> list[str]:
    with cursor_to(url) as cursor:
        cursor.execute("SELECT payment_id FROM late_checks ORDER BY 1")
        return [str(payment_id) for (payment_id,) in cursor.fetchall()]


def waiting(url: str) -> int:
    with cursor_to(url) as cursor:
        cursor.execute(_WAITING)
        return int(cursor.fetchall()[0][0])


def test_flood_of_foreign_events_costs_few_questions(service, owner_url):
    flood(owner_url, 300)
    budget = frozen()

    rounds = [late_round(service, budget) for _ in range(12)]

    assert len(service.provider.asked) == FOREIGN_BURST
    assert max(rounds) <= 50 + LATE_AT_ONCE
    assert waiting(owner_url) == 300 - FOREIGN_BURST


def test_hint_about_our_charge_passes_a_flood_without_a_question(service, owner_url):
    payment = service.pay()
    flood(owner_url, 300)
    hint(service, "evt_ours", str(payment.provider_ref))
    budget = CallBudget(per_s=0.0, burst=0)

    for _ in range(8):
        late_round(service, budget)
    service.inbox.apply_hints(100, soon())

    assert checks(owner_url) == [str(payment.payment_id)]
    assert service.provider.asked == []


def test_flood_of_another_instance_is_applied_without_look_ups(service, owner_url):
    payment = service.pay()
    with cursor_to(owner_url) as cursor:
        # Events with metadata like ours, of merchants that are none of ours.
        cursor.execute(
            "INSERT INTO webhook_inbox"
            " (provider, event_id, type, provider_ref, merchant_id, payment_id, due_at)"
            " SELECT 'fake', 'evt_' || n, 'charge.refunded', 'pi_' || n, gen_random_uuid(),"
            " gen_random_uuid(), now() - interval '1 h' FROM generate_series(1, 1000) AS n"
        )
    hint(service, "evt_ours", str(payment.provider_ref))
    service.late_store.name_own_hints(50, soon())
    parts = cast(Background, SimpleNamespace(inbox=service.inbox))

    applied = [Background._apply_hints(parts, lambda *_: [], soon()) for _ in range(12)]

    assert applied == [HINTS_AT_ONCE] * 10 + [1, 0]
    assert checks(owner_url) == [str(payment.payment_id)]


def test_one_answer_names_all_events_about_a_charge(service, owner_url):
    flood(owner_url, 60, refs=2)
    budget = frozen()

    for _ in range(4):
        late_round(service, budget)

    assert sorted(service.provider.asked) == ["pi_foreign0", "pi_foreign1"]
    assert waiting(owner_url) == 0


def test_foreign_event_with_our_metadata_costs_nothing(service, owner_url):
    flood(owner_url, 60, type_="payment_intent.succeeded")
    budget = frozen()

    for _ in range(3):
        late_round(service, budget)

    assert (service.provider.asked, waiting(owner_url)) == ([], 0)


def test_charge_with_a_lost_reference_is_named_by_the_provider(service, owner_url):
    payment = service.pay()
    shown = service.provider.listed_charge(next(iter(service.provider.charged.values())))
    service.provider.listed = [replace(shown, provider_ref="pi_unnoted")]
    hint(service, "evt_dispute", "pi_unnoted", "charge.dispute.created")

    late_round(service, frozen())
    service.inbox.apply_hints(100, soon())

    assert checks(owner_url) == [str(payment.payment_id)]


def test_checks_of_ours_come_before_foreign_questions(service, owner_url):
    payment = service.pay()
    flood(owner_url, 20)
    service.late_store.name_own_hints(50, soon())
    service.late_store.ask(payment, soon())
    service.provider.calls.clear()
    order: list[str] = []
    service.provider.during_call = lambda: order.append(service.provider.calls[-1])

    late_round(service, frozen())

    assert order[0] == "look_up"
    assert len(service.provider.asked) == LATE_AT_ONCE
