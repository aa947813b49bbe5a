"""The cost of the rules about money over many payments: each rule's passes and their slowest slices.

HOLDFAST_BENCH_PAYMENTS is the number of payments (1,000,000), all made within the last five hours by
MERCHANTS merchants: two thirds were refunded in part, one third was captured by hand.
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
from service.payments.settling.invariant_checks import QUICK_WINDOW
from service.payments.settling.invariants import RULES, WINDOW, Place, check_slice
from service.resilience.deadline import Deadline
from service.resilience.watchdog import Watchdog

MANY = int(os.environ.get("HOLDFAST_BENCH_PAYMENTS", "1000000"))
MERCHANTS = 50
# Version 7 UUIDs, spread over five hours; the first merchant has half of the payments.
_FILL = """
    WITH made AS (
        SELECT n, (ARRAY{merchants}::uuid[])[CASE WHEN n % 2 = 0 THEN 1 ELSE 1 + n % {count} END]
               AS merchant_id,
            (lpad(to_hex((extract(epoch FROM now()) * 1000)::bigint
                       - (n * 18000000::bigint / {many})), 12, '0') || '7'
            || lpad(to_hex(n % 4096), 3, '0') || '8000' || lpad(to_hex(n), 12, '0'))::uuid AS id
        FROM generate_series(1, {many}) AS n
    ), keys AS (
        INSERT INTO idempotency_keys (merchant_id, idempotency_key, fingerprint, payment_id)
        SELECT merchant_id, id::text, '\\x00', id FROM made
    ), events AS (
        INSERT INTO events (merchant_id, event_id, payment_id, type)
        SELECT merchant_id, id, id, 'payment.succeeded' FROM made
    ), movements AS (
        INSERT INTO movements (merchant_id, movement_id, payment_id, kind, status, amount)
        SELECT merchant_id, id, id, CASE n % 3 WHEN 0 THEN 'capture' ELSE 'refund' END,
               'succeeded', CASE n % 3 WHEN 0 THEN 100 ELSE 40 END
        FROM made
    )
    INSERT INTO payments (merchant_id, payment_id, status, amount, currency, payment_method,
                          capture_method, on_outage, amount_captured, amount_refunded, provider,
                          provider_ref, key_digest)
    SELECT merchant_id, id, 'succeeded', 100, 'usd', 'pm', 'automatic', 'queue', 100,
           CASE n % 3 WHEN 0 THEN 0 ELSE 40 END, 'fake', 'pi_' || n,
           encode(sha256(convert_to(concat_ws(chr(10), 'payment',
               replace(merchant_id::text, '-', ''), id::text), 'UTF8')), 'hex')
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
    merchants, began = [str(uuid4()) for _ in range(MERCHANTS)], time.monotonic()
    with cursor_to(url) as cursor:
        for merchant in merchants:
            cursor.execute("INSERT INTO merchants (merchant_id, name) VALUES (%s, '')", (merchant,))
        cursor.execute(_FILL.format(many=MANY, merchants=merchants, count=MERCHANTS))
        cursor.execute("VACUUM ANALYZE")
    print(f"{MANY} payments, filled in {time.monotonic() - began:.0f} s\n")


def _measure(url: str) -> None:
    pool = ConnectionPool(url, size=1, wait_s=1.0, max_waiters=1, watchdog=Watchdog())
    try:
        print(
            f"{'rule':28}{'whole pass':>12}{'slices':>8}{'slowest':>10}{'quick pass':>12}{'slowest':>10}"
        )
        for rule in RULES:
            whole = _pass(pool, rule, WINDOW, of_changes=False)
            quick = _pass(pool, rule, QUICK_WINDOW, of_changes=True)
            print(
                f"{rule:28}{sum(whole):10.2f} s{len(whole):8}{max(whole):8.2f} s"
                f"{sum(quick):10.2f} s{max(quick):8.2f} s",
                flush=True,
            )
    finally:
        pool.close()


def _pass(pool: ConnectionPool, rule: str, window: timedelta, *, of_changes: bool) -> list[float]:
    """The seconds of each slice; a violation would be a fault of the rule."""
    place: Place | None = Place()
    since, took = datetime.now(UTC) - window, []
    while place is not None:
        began = time.monotonic()
        violations, place = check_slice(
            pool, rule, place, Deadline.after(60), since=since, of_changes=of_changes
        )
        assert violations == 0, rule
        took.append(time.monotonic() - began)
    return took


if __name__ == "__main__":
    main()
