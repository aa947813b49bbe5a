"""The pages that each list of the API reads, by EXPLAIN, under both kinds of plan."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

from service.database.pool.statements import Statement, prepared_form
from service.ids import UUID_MAX
from service.payments.charge import statements as payment_statements
from service.payments.charge.model import Status
from service.payments.events import endpoints, feed
from service.payments.movements import statements as movement_statements
from service.payments.settling import figures

# The bulk of the rows: paid, under one reference; the other statuses have none.
_FILL = """
    WITH made AS (
        SELECT n, (lpad(to_hex((extract(epoch FROM now()) * 1000)::bigint - n * 10), 12, '0') || '7'
            || lpad(to_hex(n %% 4096), 3, '0') || '8000' || lpad(to_hex(n), 12, '0'))::uuid AS id,
            now() - n * interval '10 ms' AS at
        FROM generate_series(1, %(rows)s) AS n
    ), events AS (
        INSERT INTO events (merchant_id, event_id, payment_id, type, created_at)
        SELECT %(merchant)s, id, id, 'payment.succeeded', at FROM made
    ), refunds AS (
        INSERT INTO movements (merchant_id, movement_id, payment_id, kind, status, amount)
        SELECT %(merchant)s, id, id, 'refund', 'succeeded', 40 FROM made
    ), waiting AS (
        INSERT INTO webhook_outbox
            (merchant_id, endpoint_id, event_id, payment_id, type, event_at, due_at)
        SELECT %(merchant)s, %(endpoint)s, id, id, 'payment.succeeded', at, 'infinity' FROM made
    )
    INSERT INTO payments (merchant_id, payment_id, status, amount, currency, payment_method,
                          capture_method, on_outage, amount_captured, amount_refunded, provider,
                          provider_ref, reference, created_at)
    SELECT %(merchant)s, id, 'succeeded', 100, 'usd', 'pm', 'automatic', 'queue', 100, 40, 'fake',
           'pi_' || n, 'subscription', at
    FROM made
"""


@dataclass(frozen=True, slots=True)
class Cost:
    """The reads of one list, and its plan."""

    name: str
    kind: str
    pages: int
    ms: float
    plan: str


def fill(cursor: Any, rows: int) -> str:
    """Insert this many payments, refunds, events and deliveries of one merchant; returns its id."""
    merchant, endpoint = str(uuid4()), str(uuid4())
    cursor.execute("INSERT INTO merchants (merchant_id, name) VALUES (%s, '')", (merchant,))
    cursor.execute(
        "INSERT INTO webhook_endpoints (merchant_id, endpoint_id, url, event_types, secret)"
        " VALUES (%s, %s, 'https://example.com', '{*}', 'x')",
        (merchant, endpoint),
    )
    cursor.execute(_FILL, {"rows": rows, "merchant": merchant, "endpoint": endpoint})
    cursor.execute("VACUUM ANALYZE")
    return merchant


def costs(cursor: Any, merchant: str, rows: int) -> Iterator[Cost]:
    """Each list once with a plan for its values and once with a plan for any values."""
    for kind in ("force_custom_plan", "force_generic_plan"):
        cursor.execute("SET plan_cache_mode = %s", (kind,))
        for name, statement, values in _lists(cursor, merchant, rows):
            prepare, execute = prepared_form(statement, has_params=True)
            cursor.execute(f"DEALLOCATE ALL; {prepare}")
            cursor.execute(f"EXPLAIN (ANALYZE, BUFFERS) {execute}", values)
            plan = "\n".join(line for (line,) in cursor.fetchall())
            yield Cost(name, kind, _pages(plan), _ms(plan), plan)
    cursor.execute("RESET plan_cache_mode")


def _lists(cursor: Any, merchant: str, rows: int) -> list[tuple[str, Statement, dict[str, Any]]]:
    cursor.execute(
        "SELECT created_at, payment_id FROM payments WHERE merchant_id = %s"
        " ORDER BY created_at DESC, payment_id DESC OFFSET %s LIMIT 1",
        (merchant, rows // 2),
    )
    ((middle_at, middle_id),) = cursor.fetchall()
    middle = {"before_at": middle_at, "before_id": str(middle_id)}
    all_ = {
        "merchant_id": merchant,
        "created_gte": "-infinity",
        "before_at": "infinity",
        "before_id": str(UUID_MAX),
        "limit": 21,
        "statuses": [status.value for status in Status],
        "reference": "subscription",
    }
    future = {"created_gte": "2200-01-01T00:00:00Z"}
    no_hit = {"statuses": ["declined", "expired"]}
    by_status = payment_statements.LIST_BY_STATUS
    by_reference = payment_statements.LIST_BY_REFERENCE
    of_events, refunds = feed._READ, movement_statements.LIST_REFUNDS
    of_payment = {"merchant_id": merchant, "payment_id": str(middle_id), "limit": 21}
    of_feed = {"merchant_id": merchant, "limit": 21}
    return [
        ("payments", by_status, all_),
        ("payments, middle page", by_status, all_ | middle),
        ("payments, no hit in time", by_status, all_ | future),
        ("payments by status, no hit", by_status, all_ | no_hit),
        (
            "payments by status, no hit, since",
            by_status,
            all_ | no_hit | {"created_gte": middle_at},
        ),
        ("payments by status, middle page", by_status, all_ | middle | {"statuses": ["succeeded"]}),
        ("payments by status, no hit in time", by_status, all_ | future),
        ("payments by reference", by_reference, all_),
        ("payments by reference, middle page", by_reference, all_ | middle),
        ("payments by reference, no hit", by_reference, all_ | {"reference": "none"}),
        ("payments by reference, no status", by_reference, all_ | no_hit),
        ("payments by reference, no time", by_reference, all_ | future),
        ("refunds of a payment", refunds, of_payment | {"before": str(UUID_MAX)}),
        ("timeline of a payment", payment_statements.TIMELINE, of_payment),
        ("events", of_events, of_feed | {"after": str(UUID(int=0))}),
        ("events, middle page", of_events, of_feed | {"after": str(middle_id)}),
        ("events, at the end", of_events, of_feed | {"after": str(UUID_MAX)}),
        ("open payments and movements", figures._OPEN_FIGURES, {"all": None}),
        ("webhook endpoints", endpoints._LIST, {"merchant_id": merchant, "endpoint_id": None}),
    ]


def _pages(plan: str) -> int:
    """The pages of the whole plan, its first line of buffers."""
    found = re.search(r"Buffers: shared(?: hit=(\d+))?(?: read=(\d+))?", plan)
    return sum(int(number or 0) for number in found.groups()) if found else 0


def _ms(plan: str) -> float:
    found = re.search(r"Execution Time: ([0-9.]+) ms", plan)
    return float(found[1]) if found else 0.0
