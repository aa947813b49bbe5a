"""What the rules about money cost over many payments: each rule's whole pass, and its slowest slice.

HOLDFAST_BENCH_PAYMENTS says how many there are (1,000,000), all made within the last six hours.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

from service.database.direct import cursor_to
from service.database.migrate.runner import migrate
from service.database.pool.pool import ConnectionPool
from service.lab.local.embedded import OWNER, EmbeddedPostgres
from service.payments.settling.invariants import RULES, WINDOW, Place, check_slice
from service.resilience.deadline import Deadline
from service.resilience.watchdog import Watchdog

MANY = int(os.environ.get("HOLDFAST_BENCH_PAYMENTS", "1000000"))
# Version 7 UUIDs, spread over five hours.
_FILL = """
    WITH made AS (
        SELECT n, (lpad(to_hex((extract(epoch FROM now()) * 1000)::bigint
                       - (n * 18000000::bigint / {many})), 12, '0') || '7'
            || lpad(to_hex(n % 4096), 3, '0') || '8000' || lpad(to_hex(n), 12, '0'))::uuid AS id
        FROM generate_series(1, {many}) AS n
    ), keys AS (
        INSERT INTO idempotency_keys (merchant_id, idempotency_key, fingerprint, payment_id)
        SELECT '{merchant}', id::text, '\\x00', id FROM made
    ), events AS (
        INSERT INTO events (merchant_id, event_id, payment_id, type)
        SELECT '{merchant}', id, id, 'payment.succeeded' FROM made
    )
    INSERT INTO payments (merchant_id, payment_id, status, amount, currency, payment_method,
                          capture_method, on_outage, amount_captured, provider, provider_ref)
    SELECT '{merchant}', id, 'succeeded', 100, 'usd', 'pm', 'automatic', 'queue', 100, 'fake',
           'pi_' || n
    FROM made
"""


def main() -> None:
    home = Path(tempfile.mkdtemp(prefix="holdfast-bench-"))
    home.chmod(0o711)
    server = EmbeddedPostgres(home, options=("fsync=off", "max_wal_size=4GB"))
    try:
        server.start()
        with cursor_to(server.url(OWNER, "postgres")) as cursor:
            cursor.execute("CREATE DATABASE invariants")
        url = server.url(OWNER, "invariants")
        migrate(url)
        _fill(url)
        _measure(url)
    finally:
        server.stop()
        shutil.rmtree(home, ignore_errors=True)


def _fill(url: str) -> None:
    merchant, began = str(uuid4()), time.monotonic()
    with cursor_to(url) as cursor:
        cursor.execute("INSERT INTO merchants (merchant_id, name) VALUES (%s, '')", (merchant,))
        cursor.execute(_FILL.format(many=MANY, merchant=merchant))
        cursor.execute("VACUUM ANALYZE")
    print(f"{MANY} payments, filled in {time.monotonic() - began:.0f} s\n")


def _measure(url: str) -> None:
    pool = ConnectionPool(url, size=1, wait_s=1.0, max_waiters=1, watchdog=Watchdog())
    try:
        print(f"{'rule':32}{'whole pass':>12}{'slices':>8}{'slowest':>10}{'10 min of changes':>20}")
        for rule in RULES:
            whole = _pass(pool, rule, WINDOW, of_changes=False)
            quick = _pass(pool, rule, timedelta(minutes=10), of_changes=True)
            print(
                f"{rule:32}{sum(whole):10.2f} s{len(whole):8}{max(whole):8.2f} s{sum(quick):18.2f} s",
                flush=True,
            )
    finally:
        pool.close()


def _pass(pool: ConnectionPool, rule: str, window: timedelta, *, of_changes: bool) -> list[float]:
    """Seconds of each slice."""
    place: Place | None = Place()
    since, took = datetime.now(UTC) - window, []
    while place is not None:
        began = time.monotonic()
        _, place = check_slice(
            pool, rule, place, Deadline.after(60), since=since, of_changes=of_changes
        )
        took.append(time.monotonic() - began)
    return took


if __name__ == "__main__":
    main()
