"""Database pool: waiting callers, their waits, and the reasons for opened and dropped connections."""

from __future__ import annotations

from grafana.frame import Board
from grafana.panels import BAD, GOOD, REFUSED, WAIT, heat, lines, number
from grafana.queries import added, buckets, counted, largest, per_second, percentiles, quantile

BOARD = Board(
    name="pool",
    title="Database pool",
    description="Each worker's connections to PostgreSQL: checked out, waited for, opened, dropped; and their use.",
    rows=[
        (
            "Is there enough?",
            [
                number(
                    "In use of all",
                    "percentunit",
                    "Good is below 70 %; at 100 % the next caller waits.",
                    "PoolSaturated",
                    (f"{added('db_pool_in_use')} / {added('db_pool_size')}", "in use"),
                    steps=((None, GOOD), (0.7, WAIT), (1, BAD)),
                    decimals=0,
                ),
                number(
                    "Callers waiting",
                    "short",
                    "Good is 0; a few for moments is the queue at work.",
                    "PoolSaturated",
                    (added("db_pool_waiting"), "waiting"),
                    steps=((None, GOOD), (1, WAIT), (10, BAD)),
                ),
                number(
                    "Wait, p99, 5 min",
                    "s",
                    "Good is below 5 ms; 250 ms opens a ticket, 500 ms refuses the caller.",
                    "PoolSaturated",
                    (
                        'max(instance:holdfast_db_pool_wait_seconds:p99{instance=~"$instance"})',
                        "p99",
                    ),
                    steps=((None, GOOD), (0.05, WAIT), (0.25, BAD)),
                    decimals=1,
                ),
                number(
                    "Exhausted, 5 min",
                    "short",
                    "Good is 0: connection pool exhausted.",
                    "PoolTimeouts",
                    (counted("db_pool_timeouts_total", over="5m"), "callers"),
                    steps=((None, GOOD), (1, WAIT), (10, BAD)),
                    decimals=0,
                ),
                number(
                    "Leaks, 1 h",
                    "short",
                    "Good is 0: a connection held far too long is always a bug.",
                    "ConnectionLeak",
                    (counted("db_pool_leaks_total", over="1h"), "leaks"),
                    decimals=0,
                ),
                number(
                    "Database errors, 5 min",
                    "short",
                    "Good is 0; an integrity error is a lost race, which is harmless.",
                    "ComponentDown",
                    (
                        counted(
                            "db_errors_total",
                            where='instance=~"$instance", class!="integrity"',
                            over="5m",
                        ),
                        "errors",
                    ),
                    steps=((None, GOOD), (1, WAIT), (10, BAD)),
                    decimals=0,
                ),
            ],
        ),
        (
            "Waiting",
            [
                lines(
                    "Connections",
                    "short",
                    "Good is in use below the size and no caller waiting.",
                    "PoolSaturated",
                    (added("db_pool_in_use"), "in use"),
                    (added("db_pool_waiting"), "waiting"),
                    (added("db_pool_size"), "size"),
                ),
                lines(
                    "Waiting, by worker",
                    "short",
                    "Good is 0; one worker alone hoards requests or lost its connections.",
                    "PoolSaturated",
                    (largest("db_pool_waiting", by="instance, worker"), "{{instance}} {{worker}}"),
                ),
                lines(
                    "In use, by worker",
                    "short",
                    "Good is even; a worker that stays at its size leaks or meets a slow statement.",
                    "ConnectionLeak",
                    (largest("db_pool_in_use", by="instance, worker"), "{{instance}} {{worker}}"),
                ),
                heat(
                    "Wait for a connection, as a crowd",
                    "s",
                    "Good is one band at the bottom; a band at 0.5 s is callers that were refused.",
                    "PoolSaturated",
                    buckets("db_pool_wait_seconds"),
                ),
                lines(
                    "Wait for a connection",
                    "s",
                    "Good is below 5 ms at p99; 0.5 s is where a caller is refused.",
                    "PoolSaturated",
                    *percentiles("db_pool_wait_seconds"),
                    line_at=0.5,
                ),
                lines(
                    "Got none: timed out, or refused at once",
                    "ops",
                    "Good is 0; waiters_full means that more wait than could be served in time.",
                    "PoolTimeouts",
                    (per_second("db_pool_timeouts_total"), "timed out"),
                    (per_second("db_pool_refusals_total", by="reason"), "{{reason}}"),
                    colour=REFUSED,
                ),
            ],
        ),
        (
            "Use of the connections",
            [
                lines(
                    "How long a connection is held",
                    "s",
                    "Good is milliseconds: no connection is held during a call to the provider.",
                    "ConnectionLeak",
                    *percentiles("db_pool_hold_seconds"),
                ),
                lines(
                    "Time of a statement, p99 by name",
                    "s",
                    "Good is below 10 ms; a single slow one lacks its index, all together mean the database.",
                    "PoolSaturated",
                    (
                        quantile(0.99, "db_statement_duration_seconds", by="statement"),
                        "{{statement}}",
                    ),
                ),
                lines(
                    "Statements by name",
                    "ops",
                    "Good is three a payment (two in one_shot).",
                    "PoolSaturated",
                    (
                        per_second("db_statement_duration_seconds_count", by="statement"),
                        "{{statement}}",
                    ),
                ),
                lines(
                    "Connections opened",
                    "ops",
                    "Good is a trickle, by age; a wave is a database that restarted or failed over.",
                    "ComponentDown",
                    (per_second("db_pool_connections_opened_total"), "opened"),
                ),
                lines(
                    "Connections dropped, by reason",
                    "ops",
                    "Good is lifetime only; broken and evicted indicate a failover, leaked a bug.",
                    "ComponentDown",
                    (per_second("db_pool_connections_discarded_total", by="reason"), "{{reason}}"),
                    colour=WAIT,
                ),
                lines(
                    "Errors of the database, by class",
                    "ops",
                    "Good is 0; serialization is retried whole, integrity is a race that was lost.",
                    "ComponentDown",
                    (per_second("db_errors_total", by="class"), "{{class}}"),
                    colour=BAD,
                ),
            ],
        ),
    ],
)
