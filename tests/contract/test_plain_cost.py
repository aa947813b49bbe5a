"""A plain payment costs no more statements and no more calls than its two or three steps."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from service.database.pool.pool import ConnectionPool
from service.observability.metrics import catalogue as metrics
from service.payments.charge.model import Status
from tests.support.providers.scripted_provider import ScriptedProvider, scripted_provider
from tests.support.stack.settling import Service


@pytest.fixture(scope="module")
def running() -> Iterator[ScriptedProvider]:
    with scripted_provider() as provider:
        yield provider


def statements() -> float:
    """All statements of this process so far."""
    return sum(
        sample.value
        for family in metrics.db_statement_duration_seconds.collect()
        for sample in family.samples
        if sample.name.endswith("_count")
    )


@pytest.mark.parametrize(
    ("name", "flow", "most_statements", "calls"),
    [
        ("stripe", "two_phase", 3, ["create", "confirm"]),
        ("stripe", "one_shot", 2, ["create_confirmed"]),
        ("stripe_charges", "one_shot", 2, ["create_confirmed"]),
    ],
)
def test_a_plain_payment_costs_its_steps_and_no_more(
    running: ScriptedProvider,
    pool: ConnectionPool,
    name: str,
    flow: str,
    most_statements: int,
    calls: list[str],
) -> None:
    running.clear(books=True)
    with running.adapter(name, flow=flow) as provider:
        service = Service(pool, provider)
        before = statements()

        payment = service.pay()

    assert payment.status is Status.SUCCEEDED
    assert statements() - before == most_statements
    assert [one["operation"] for one in running.requests()] == calls
