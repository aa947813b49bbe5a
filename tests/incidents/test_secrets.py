"""A canary in every secret setting: all output of the service is searched for them."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from service.lab.local.embedded import OWNER, EmbeddedPostgres
from service.payments.merchants import generate_key
from service.settings import describe
from tests.support.stack import cluster_template
from tests.support.stack.running_stack import ROOT, RunningStack, running_stack

CARD = "4242424242424242"
PAGES = (
    *("/", "/metrics", "/diagnostics/health", "/diagnostics/statistics", "/console/state"),
    *("/console/payments", "/console/operator", "/simulate", "/drills"),
)


@pytest.fixture
def postgres_of_its_own() -> Iterator[EmbeddedPostgres]:
    """A server that the test may stop, to read the service's messages about it."""
    home = Path(tempfile.mkdtemp(prefix="holdfast-test-"))
    home.chmod(0o711)
    cluster_template.put_into(home)
    server = EmbeddedPostgres(home, options=("fsync=off",))
    server.start()
    yield server
    server.stop()
    shutil.rmtree(home, ignore_errors=True)


def test_no_secret_and_no_card_number_is_told_or_stored(
    tmp_path: Path, postgres_of_its_own: EmbeddedPostgres
) -> None:
    # The server needs no password: it is a canary for places where it must not appear.
    app_url, owner_url = (
        postgres_of_its_own.url(role).replace(f"{role}@", f"{role}:canary-{role}-e41d@")
        for role in ("holdfast", OWNER)
    )
    settings = {
        "HOLDFAST_BOOTSTRAP_API_KEY": generate_key("test"),
        "DATABASE_URL": app_url,
        "MIGRATE_DATABASE_URL": owner_url,
        "STRIPE_API_KEY": "sk_test_canary7f3a91c2",
        "STRIPE_WEBHOOK_SECRET": "whsec_canary55b0e4d8",
    }
    home = tmp_path / "local_stack"
    with running_stack(home, **settings) as local_stack:
        lines = [Path(f"/proc/{pid}/cmdline").read_text() for pid in local_stack.pids.values()]
        paid = local_stack.pay(reference="to-be-found").json()
        emitted = [answer.text for answer in _provoke(local_stack)]
        emitted += _output(local_stack, settings)
        written = _write_ahead_log(postgres_of_its_own)
        postgres_of_its_own.stop()
        refused = local_stack.pay()
        emitted += [refused.text, *_output(local_stack, settings)]
    # After the stop, so that the last log lines are read too.
    logs = [*(home / "logs").glob("*.log"), home / "run.out"]
    emitted += [log.read_text(errors="replace") for log in logs]

    assert set(settings) == {name for name, _, _, is_secret in describe() if is_secret}
    assert refused.json()["code"] in ("database_unavailable", "db_pool_exhausted")
    assert len(emitted) > 40
    canaries = [f"canary-{role}-e41d" for role in ("holdfast", OWNER)]
    canaries += [text for name, text in settings.items() if "DATABASE" not in name]
    for text in (*emitted, *lines):
        assert [canary for canary in (*canaries, CARD) if canary in text] == []
    # The card number is not stored either; the reference shows that the log holds what is stored.
    assert paid["reference"].encode() in written
    assert CARD.encode() not in written


def _write_ahead_log(server: EmbeddedPostgres) -> bytes:
    """Everything that was ever written to the database, deleted rows included."""
    # PostgreSQL's working directory is its data directory.
    segments = Path(f"/proc/{server.pid}/cwd/pg_wal").iterdir()
    return b"".join(segment.read_bytes() for segment in segments if segment.is_file())


def _output(local_stack: RunningStack, settings: dict[str, str]) -> list[str]:
    """The current text of every page, and the output of the command line."""
    headers = {"Authorization": f"Bearer {local_stack.api_key}"}
    pages = [local_stack.ops_url + page for page in PAGES]
    pages += [
        local_stack.url + page for page in ("/docs", "/openapi.json", "/readyz", "/v1/api_keys")
    ]
    said = [requests.get(page, headers=headers, timeout=60).text for page in pages]
    for command in (["doctor"], ["doctor", "--json"], ["payments", "list"], ["keys", "list"]):
        ran = subprocess.run(
            [sys.executable, "-m", "service", *command],
            cwd=ROOT,
            env={"HOLDFAST_HOME": local_stack.home, **settings},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        said += [ran.stdout, ran.stderr]
    return said


def _provoke(local_stack: RunningStack) -> list[requests.Response]:
    """Calls with one failure for each place that could repeat a value."""
    local_stack.control({"error_500_saved": 1})
    answers = [
        local_stack.pay(),
        local_stack.pay(reference="same"),
        local_stack.get("/v1/payments"),
    ]
    local_stack.control({"garbage": 1})
    answers.append(local_stack.pay())
    local_stack.control({"ok": 1})
    bearer = {"Authorization": f"Bearer {local_stack.api_key}x"}
    for body in (
        {"payment_method": CARD},
        {"reference": CARD},
        {"metadata": {CARD: "x"}},
        {"metadata": {"card": f"4242-4242-4242-4242 {CARD}"}},
        {CARD: "unknown field"},
        {"amount": int(CARD)},
    ):
        answers.append(local_stack.pay(**body))
        assert answers[-1].status_code == 422
    answers.append(local_stack.pay(key=CARD))
    answers.append(local_stack.pay(headers=bearer))
    answers.append(local_stack.get(f"/v1/payments?reference={CARD}"))
    answers.append(local_stack.get(f"/v1/payments/{CARD}"))
    answers.append(local_stack.request("POST", "/v1/webhooks/stripe", data=CARD))
    answers.append(
        local_stack.request("POST", "/v1/payments", data=f'{{"amount": "{CARD}', headers=bearer)
    )
    return answers
