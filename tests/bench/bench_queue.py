"""The cost of a lease while one merchant has a long queue: pages and milliseconds of each read.

HOLDFAST_BENCH_QUEUE is the queue's length (100,000). Each plan is printed whole.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from uuid import UUID, uuid4

from service.database.direct import cursor_to
from service.database.migrate.runner import migrate
from service.lab.local.embedded import OWNER, EmbeddedPostgres
from service.payments.charge.statements import LIST_BY_STATUS
from service.payments.leases.fair_share import WINDOW
from service.payments.settling import late_statements
from service.payments.settling.lease_statements import (
    LOOK_UP_IS,
    OLDEST_EXPIRED,
    QUEUED_IS,
    lease_statements,
)

LONG = int(os.environ.get("HOLDFAST_BENCH_QUEUE", "100000"))
PLACES = 8
_FILL = """
    INSERT INTO payments (merchant_id, payment_id, status, amount, currency, payment_method,
        capture_method, on_outage, provider, due_at, created_at, expires_at)
    SELECT %s, gen_random_uuid(), %s, 100, 'usd', 'pm', 'automatic', 'queue', 'stripe',
        CASE WHEN %s IN ('accepted', 'unknown') THEN now() - interval '1 h' END,
        now() - interval '1 day' + n * interval '1 ms', now() + interval '1 day'
    FROM generate_series(1, %s) AS n
"""


def main() -> None:
    home = Path(tempfile.mkdtemp(prefix="holdfast-bench-"))
    home.chmod(0o711)
    server = EmbeddedPostgres(home, options=("fsync=off",))
    try:
        server.start()
        with cursor_to(server.url(OWNER, "postgres")) as cursor:
            cursor.execute("CREATE DATABASE queue")
        migrate(server.url(OWNER, "queue"))
        _measure(server.url(OWNER, "queue"))
    finally:
        server.stop()
        shutil.rmtree(home, ignore_errors=True)


def _measure(url: str) -> None:
    big, small = str(uuid4()), str(uuid4())
    with cursor_to(url) as cursor:
        for merchant in (big, small):
            cursor.execute("INSERT INTO merchants (merchant_id, name) VALUES (%s, '')", (merchant,))
        for merchant, status, rows in (
            (big, "accepted", LONG),
            (small, "accepted", 5),
            (big, "unknown", LONG),
            (small, "unknown", 5),
            (big, "requires_capture", LONG),
        ):
            cursor.execute(_FILL, (merchant, status, status, rows))
        cursor.execute("VACUUM ANALYZE payments")
        values = {
            "provider": "stripe",
            "after": str(UUID(int=0)),
            "places": PLACES,
            "limit": WINDOW,
            "lease_s": 10,
            "merchant_ids": [big],
            "payment_ids": [small],
        }
        for kind, kind_is in (("queued", QUEUED_IS), ("look_ups", LOOK_UP_IS)):
            statements = lease_statements(kind, kind_is, has_provider=True)
            for statement in (statements.oldest, statements.of_merchants, statements.take):
                _explain(cursor, statement.name, statement.sql, values)
        _explain(cursor, OLDEST_EXPIRED.name, OLDEST_EXPIRED.sql, values)
        _measure_late(cursor, big, small, values)
        no_hit = {"merchant_id": big, "statuses": ["declined", "expired"], "created_gte": None}
        no_hit |= {"before_at": None, "before_id": None, "limit": 21}
        _explain(cursor, LIST_BY_STATUS.name, LIST_BY_STATUS.sql, no_hit)


def _measure_late(cursor, big: str, small: str, values: dict[str, object]) -> None:
    """Late checks of one merchant, and a flood of events about another program's charges."""
    for merchant, rows in ((big, LONG), (small, 5)):
        cursor.execute(_FILL_CHECKS, (merchant, rows))
    # Waiting for the provider, not yet compared with our references, and about payments of ours.
    for tries, payment_id, rows in ((1, None, LONG), (0, None, LONG), (0, small, 100)):
        cursor.execute(_FILL_HINTS, (payment_id, payment_id, tries, rows))
    cursor.execute("VACUUM ANALYZE late_checks")
    cursor.execute("VACUUM ANALYZE webhook_inbox")
    of_merchants = late_statements.due_checks_of_merchants(has_provider=True)
    for statement in (late_statements.DUE_CHECKS, of_merchants, late_statements.LEASE_CHECKS):
        _explain(cursor, statement.name, statement.sql, values)
    hints = {"limit": 100, "max_tries": 24, "provider": "stripe", "provider_ref": "pi_1"}
    hints |= {"merchant_id": None, "payment_id": None}
    for statement in (
        late_statements.APPLY_HINTS,
        late_statements.NAME_OWN_HINTS,
        late_statements.UNNAMED_HINTS,
        late_statements.NAME_HINTS,
    ):
        _explain(cursor, statement.name, statement.sql, hints)


_FILL_CHECKS = """
    INSERT INTO late_checks (merchant_id, payment_id, provider, due_at)
    SELECT %s, gen_random_uuid(), 'stripe', now() - interval '1 h' + n * interval '1 ms'
    FROM generate_series(1, %s) AS n
"""
_FILL_HINTS = """
    INSERT INTO webhook_inbox
        (provider, event_id, type, provider_ref, merchant_id, payment_id, tries, due_at)
    SELECT 'stripe', gen_random_uuid()::text, 'refund.created', 'pi_' || n, %s, %s, %s,
        now() - interval '1 h' + n * interval '1 ms'
    FROM generate_series(1, %s) AS n
"""


def _explain(cursor, name: str, sql: str, values: dict[str, object]) -> None:
    cursor.execute(f"EXPLAIN (ANALYZE, BUFFERS) {sql}", values)
    print(f"\n--- {name}, {LONG} rows wait\n" + "\n".join(line for (line,) in cursor.fetchall()))


if __name__ == "__main__":
    main()
