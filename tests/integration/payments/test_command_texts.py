"""Texts that a person types on the command line are checked like those of callers over REST."""

from __future__ import annotations

import argparse

import pytest

from service.cli import keys, payments
from service.database.direct import cursor_to
from service.payments.charge.model import Status
from service.payments.charge.store import PaymentStore
from service.payments.merchants import DEFAULT_MERCHANT_ID
from tests.support.charge_requests import charge_request
from tests.support.stack.settling import soon

UNFIT = {
    "a card number": "seen with 4242 4242 4242 4242",
    "a line's end": "seen in\nthe books",
    "a half character": "seen in the books \udce4",
    "too many words": "seen in the books " * 1000,
}


@pytest.fixture
def environment(monkeypatch, database_url):
    monkeypatch.setenv("DATABASE_URL", database_url)
    for name in ("STRIPE_API_KEY", "STRIPE_API_BASE", "MIGRATE_DATABASE_URL"):
        monkeypatch.delenv(name, raising=False)


def run(command, *words: str) -> int:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return int(command.run(parser.parse_args(words)))


def rows(url: str, statement: str) -> list[tuple]:
    with cursor_to(url) as cursor:
        cursor.execute(statement)
        return cursor.fetchall()


@pytest.mark.parametrize("case", UNFIT)
def test_unfit_evidence_is_refused_and_not_stored(environment, pool, owner_url, case):
    store = PaymentStore(pool, lease_s=0.0, queue_expires_s=60.0)
    asked = charge_request(DEFAULT_MERCHANT_ID)
    payment, _ = store.claim(asked, soon(), provider="fake", status=Status.SENDING)
    with cursor_to(owner_url) as cursor:
        cursor.execute("UPDATE payments SET status = 'unknown', leased = false")
    words = ("resolve", payment.id, "--outcome", "declined", "--evidence", UNFIT[case])

    with pytest.raises(SystemExit) as refused:
        run(payments, *words)

    assert "evidence" in str(refused.value)
    assert "4242" not in str(refused.value)
    assert rows(owner_url, "SELECT status FROM payments") == [("unknown",)]


@pytest.mark.parametrize("case", UNFIT)
def test_unfit_label_of_a_key_is_refused(environment, pool, owner_url, case):
    before = rows(owner_url, "SELECT count(*) FROM api_keys")

    with pytest.raises(SystemExit) as refused:
        run(keys, "make", "--scopes", "read", "--label", UNFIT[case])

    assert "label" in str(refused.value)
    assert rows(owner_url, "SELECT count(*) FROM api_keys") == before


@pytest.mark.parametrize("days", ["0", "-1", "99999999999"])
def test_key_that_never_lives_or_never_ends_is_refused(environment, pool, owner_url, days):
    before = rows(owner_url, "SELECT count(*) FROM api_keys")

    with pytest.raises(SystemExit) as refused:
        run(keys, "make", "--scopes", "read", "--expires-in-days", days)

    assert "--expires-in-days" in str(refused.value)
    assert rows(owner_url, "SELECT count(*) FROM api_keys") == before
