"""The mode of a database's money: what was accepted as a test is never sent with a live key."""

from __future__ import annotations

import os
import subprocess
import sys
from uuid import uuid4

import pytest

from service.database.direct import cursor_to
from service.database.pool.pool import ConnectionPool
from service.lab.local.embedded import EmbeddedPostgres
from service.payments.audit import AuditLog
from service.payments.charge.model import Status
from service.payments.charge.store import PaymentStore
from service.payments.modes import ModeConflict, claim_mode
from service.resilience.deadline import Deadline
from service.settings import Settings, SettingsError
from service.startup.database import require_mode
from service.startup.gunicorn import ROOT
from tests.support.charge_requests import charge_request


@pytest.fixture
def queue_payment(pool: ConnectionPool) -> None:
    store = PaymentStore(pool, lease_s=5.0, queue_expires_s=60.0)
    store.claim(
        charge_request(uuid4()),
        Deadline.after(60),
        provider="stripe",
        status=Status.ACCEPTED,
        due_in_s=3600.0,
    )


@pytest.mark.parametrize(("old", "new"), [("test", "live"), ("live", "test")])
def test_open_payments_of_test_mode_meet_no_live_key(
    database_url: str, queue_payment: None, pool: ConnectionPool, old: str, new: str
) -> None:
    claim_mode(database_url, old)
    settings = Settings(database_url=database_url, stripe_api_key=f"sk_{new}_hush")

    with pytest.raises(ModeConflict):
        claim_mode(database_url, new)
    with pytest.raises(SettingsError, match=f"made in {old} mode"):
        require_mode(settings)
    claim_mode(database_url, old)


def test_the_reconciler_ends_before_it_sends_anything(
    database_url: str, queue_payment: None, tmp_path: object
) -> None:
    claim_mode(database_url, "test")

    done = subprocess.run(
        [sys.executable, "-m", "service", "reconcile"],
        cwd=ROOT,
        env={
            **os.environ,
            "DATABASE_URL": database_url,
            "STRIPE_API_KEY": "sk_live_hush",
            "STRIPE_API_BASE": "https://127.0.0.1:1",
            "HOLDFAST_HOME": str(tmp_path),
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.returncode == 2
    assert "made in test mode" in done.stderr
    assert "hush" not in done.stdout + done.stderr


def test_a_settled_database_goes_live_and_says_so(database_url: str, pool: ConnectionPool) -> None:
    for mode in ("test", "live", "live"):
        claim_mode(database_url, mode)  # type: ignore[arg-type]

    (change,) = AuditLog(pool).read(Deadline.after(60), action="provider.mode_changed")

    assert change.detail == {"from": "test", "to": "live"}


def test_an_unmigrated_database_has_no_mode(postgres: EmbeddedPostgres) -> None:
    url = postgres.url("holdfast", "postgres")

    claim_mode(url, "live")

    with cursor_to(url) as cursor:
        cursor.execute("SELECT to_regclass('background_runs')")
        assert cursor.fetchall() == [(None,)]
