"""The reads of each list of the API while one merchant has many payments: pages and milliseconds.

HOLDFAST_BENCH_PAYMENTS is their number (1,000,000): all of them paid and under one reference, each
with a refund, an event and a delivery that waits.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from service.database.direct import cursor_to
from service.database.migrate.runner import migrate
from service.lab.local.embedded import OWNER, EmbeddedPostgres
from tests.support.list_costs import costs, fill

MANY = int(os.environ.get("HOLDFAST_BENCH_PAYMENTS", "1000000"))


def main() -> None:
    home = Path(tempfile.mkdtemp(prefix="holdfast-bench-"))
    home.chmod(0o711)
    server = EmbeddedPostgres(home, options=("fsync=off", "max_wal_size=4GB"))
    try:
        server.start()
        with cursor_to(server.url(OWNER, "postgres")) as cursor:
            cursor.execute("CREATE DATABASE lists")
        migrate(server.url(OWNER, "lists"))
        with cursor_to(server.url(OWNER, "lists")) as cursor:
            _print(cursor)
    finally:
        server.stop()
        shutil.rmtree(home, ignore_errors=True)


def _print(cursor) -> None:
    merchant = fill(cursor, MANY)
    print(f"{MANY} payments\n{'list':38}{'plan':>20}{'pages':>8}{'ms':>10}")
    for cost in costs(cursor, merchant, MANY):
        print(f"{cost.name:38}{cost.kind:>20}{cost.pages:8}{cost.ms:10.2f}", flush=True)


if __name__ == "__main__":
    main()
