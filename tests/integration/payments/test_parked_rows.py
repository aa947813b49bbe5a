"""A row that cannot be written or handled waits, ever longer, and is logged: the others go on."""

from __future__ import annotations

from typing import Any

import pytest
from prometheus_client import REGISTRY

from service.app.rounds import LookUpRounds
from service.payments.charge.model import Status
from service.payments.movements.model import MovementStatus
from service.payments.settling.parking import PARKED_MIN_S
from service.providers.base import Outcome, OutcomeKind, ProviderDecline, Stage
from tests.support.providers.booked_provider import BookedProvider, unknown
from tests.support.stack.moving import Moving
from tests.support.stack.settling import Service, soon

# As an adapter must never hand on; the stores are the last to meet it.
DIRTY: dict[str, dict[str, Any]] = {
    "NUL": {"next_action": {"url": "a\x00b"}},
    "half a character": {"next_action": {"url": "a\ud800"}},
    "no number": {"next_action": {"n": float("nan")}},
    "a reference with NUL": {"provider_ref": "pi_\x00", "next_action": {"type": "x"}},
    "a bigint too large": {"amount_received": 10**30},
    "a decline with NUL": {"decline": ProviderDecline("a\x00", "b\ud800")},
}
KINDS = {"amount_received": OutcomeKind.SUCCEEDED, "decline": OutcomeKind.DECLINED}


def dirty(case: str) -> Outcome:
    fields = DIRTY[case]
    kind = next((KINDS[name] for name in fields if name in KINDS), OutcomeKind.PENDING)
    return Outcome(kind, Stage.ANSWERED, **fields)


def parked() -> float:
    return REGISTRY.get_sample_value("holdfast_rows_parked_total") or 0.0


@pytest.mark.parametrize("case", DIRTY)
def test_unwritten_answer_is_doubt_with_a_schedule(pool, case):
    service = Service(pool, BookedProvider(dirty(case)))
    before = parked()

    payment = service.pay()

    assert payment.status is Status.UNKNOWN
    assert payment.next_check_at is not None
    assert parked() == before + 1


@pytest.mark.parametrize("case", ["NUL", "a decline with NUL"])
def test_unwritten_look_up_is_not_repeated_at_once(pool, case):
    service = Service(pool, BookedProvider(unknown(), look_ups=(dirty(case),)))
    payment = service.pay()
    service.age(3600)

    (settled,) = service.settle()

    assert settled.status is Status.UNKNOWN
    # By the age of the doubt, and not by the lease.
    assert (service.read(payment).next_check_at - settled.updated_at).total_seconds() > 600


def test_a_refund_that_cannot_be_written_is_in_doubt(pool):
    provider = BookedProvider()
    moving = Moving(pool, provider)
    payment = moving.pay()
    answer = Outcome(OutcomeKind.SUCCEEDED, Stage.ANSWERED, provider_ref="re_\x00")
    provider.next_answers["refund"].append(answer)

    assert moving.refund(payment, 100).status is MovementStatus.UNKNOWN


def test_a_row_that_cannot_be_handled_is_parked(pool, caplog):
    """A bug met by one row ends neither the round nor the patience of the database."""

    class Broken(BookedProvider):
        def look_up(self, *_: Any) -> Outcome:
            raise KeyError("a bug")

    service = Service(pool, Broken(unknown()))
    payment = service.pay()
    service.make_due()
    (leased,) = service.leases.lease_look_ups(1, soon())
    rounds = LookUpRounds(service.leases, service.reconciler, send_timeout_s=5.0, threads=1)

    assert rounds.settle(leased)

    waits = service.read(payment)
    assert (waits.next_check_at - waits.updated_at).total_seconds() > PARKED_MIN_S * 0.9
    assert "reconciler.parked" in caplog.text
