"""The invariants about money as SQL: each counts its violations, and each count must be 0.

A rule reads one slice at a time, by the primary key and merchant by merchant, so the cost of a
statement does not grow with the number of payments; a slow or failing rule blocks no other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from service.database.pool.pool import ConnectionPool, Statement
from service.errors import Busy
from service.resilience.deadline import Deadline

# Long enough to check every payment many times while a repair is still easy.
WINDOW = timedelta(hours=6)
# A statement over this many rows takes a few hundredths of a second.
SLICE_ROWS = 5000
_NOWHERE = "00000000-0000-0000-0000-000000000000"

# The rows after (merchant_id, last_id), in that order; each merchant by its own index range, so that
# neither already read nor older rows are read again. The join to a LATERAL with a limit can only be
# a nested loop, which keeps the merchants' order: a sort above it would read all of them for each
# slice. Only our own names are inserted.
_SLICE = """
    slice AS MATERIALIZED (
        SELECT r.* FROM (
            SELECT merchant_id FROM merchants WHERE merchant_id >= %(merchant_id)s::uuid
            ORDER BY merchant_id
        ) m CROSS JOIN LATERAL (
            SELECT t.* FROM {table} t
            WHERE t.merchant_id = m.merchant_id
              AND t.{key} > CASE WHEN m.merchant_id = %(merchant_id)s::uuid
                                 THEN greatest({since}, {last}) ELSE {since} END
            ORDER BY t.{key} LIMIT %(rows)s::integer
        ) r
        LIMIT %(rows)s::integer
    )
"""
# Each change of a payment writes an event with the time in its id: the ids find old rows that have
# changed recently, and movements find those with moved money. The LIMIT makes it one read of the
# primary key for each.
_PAYMENTS_CHANGED = """
    payments_read AS MATERIALIZED (
        SELECT p.* FROM (SELECT DISTINCT merchant_id, payment_id FROM slice) c CROSS JOIN LATERAL (
            SELECT * FROM payments t
            WHERE t.merchant_id = c.merchant_id AND t.payment_id = c.payment_id LIMIT 1
        ) p
    )
"""
_READ = """
    SELECT (SELECT count(*) FROM broken), (SELECT count(*) FROM slice), e.merchant_id, e.last_id
    FROM (SELECT 1) AS one LEFT JOIN (
        SELECT merchant_id, {key} AS last_id FROM slice ORDER BY merchant_id DESC, {key} DESC LIMIT 1
    ) e ON true
"""
_PAYMENTS = {
    "table": "payments",
    "key": "payment_id",
    "since": "%(since_id)s::uuid",
    "last": "%(last_id)s::uuid",
}
_EVENTS = {**_PAYMENTS, "table": "events", "key": "event_id"}
_MOVEMENTS = {**_PAYMENTS, "table": "movements", "key": "movement_id"}
_REFUNDS = "coalesce(sum(m.amount) FILTER (WHERE m.kind = 'refund' AND m.status {which}), 0)"


def _rule(name: str, of: Mapping[str, str], broken: str, *more: str) -> Statement:
    payments = more or ("payments_read AS (SELECT * FROM slice)",)
    parts = ", ".join([_SLICE.format(**of), *payments, f"broken AS ({broken})"])
    return Statement(f"invariant_{name}", f"WITH {parts} {_READ.format(**of)}")


def _rule_of_changes(rule: str) -> Statement:
    """The same rule for changed rows of any age."""
    whole = _STATEMENTS[rule].sql
    broken = whole[whole.index("broken AS (") :]
    end = broken.replace(_READ.format(**_PAYMENTS), _READ.format(**_EVENTS))
    end = end.replace(_READ.format(**_MOVEMENTS), _READ.format(**_EVENTS))
    return Statement(
        f"invariant_changed_{rule}", f"WITH {_SLICE.format(**_EVENTS)}, {_PAYMENTS_CHANGED}, {end}"
    )


# The cheapest first, so that a slow database completes as many as possible.
_STATEMENTS = {
    "captured_within_authorised": _rule(
        "captured_within_authorised",
        _PAYMENTS,
        "SELECT 1 FROM payments_read WHERE amount_captured > amount",
    ),
    "refunded_within_captured": _rule(
        "refunded_within_captured",
        _PAYMENTS,
        "SELECT 1 FROM payments_read WHERE amount_refunded + amount_refunding > amount_captured",
    ),
    "one_payment_a_reference": _rule(
        "one_payment_a_reference",
        _PAYMENTS,
        # Within one merchant the unique index forbids it; the other merchants are read by the index
        # that begins with the reference. The LIMIT keeps it one probe for each payment, where a join
        # would read the table.
        """SELECT 1 FROM payments_read r WHERE r.provider_ref IS NOT NULL AND 0 < (
               SELECT count(*) FROM (
                   SELECT 1 FROM payments o
                   WHERE o.provider_ref = r.provider_ref AND o.provider = r.provider
                     AND (o.merchant_id, o.payment_id) <> (r.merchant_id, r.payment_id)
                   LIMIT 1) AS other (one))""",
    ),
    "refunds_add_up": _rule(
        "refunds_add_up",
        _MOVEMENTS,
        # A LATERAL aggregate is one probe of the index for each payment; a join would read all movements.
        f"""SELECT 1 FROM payments_read p CROSS JOIN LATERAL (
                SELECT {_REFUNDS.format(which="= 'succeeded'")} AS refunded,
                       {_REFUNDS.format(which="NOT IN ('succeeded', 'declined')")} AS refunding
                FROM movements m
                WHERE m.merchant_id = p.merchant_id AND m.payment_id = p.payment_id
            ) t
            WHERE p.amount_refunded <> t.refunded OR p.amount_refunding <> t.refunding""",
        _PAYMENTS_CHANGED,
    ),
    "captured_once": _rule(
        "captured_once",
        _MOVEMENTS,
        """SELECT 1 FROM payments_read p CROSS JOIN LATERAL (
               SELECT count(*) AS ends, max(m.amount) FILTER (WHERE m.kind = 'capture') AS captured
               FROM movements m
               WHERE m.merchant_id = p.merchant_id AND m.payment_id = p.payment_id
                 AND m.kind IN ('capture', 'void') AND m.status = 'succeeded'
           ) t
           WHERE t.ends > 1 OR t.captured <> p.amount_captured""",
        _PAYMENTS_CHANGED,
    ),
    "payment_has_events": _rule(
        "payment_has_events",
        _PAYMENTS,
        """SELECT 1 FROM payments_read r WHERE 0 = (
               SELECT count(*) FROM events e
               WHERE e.merchant_id = r.merchant_id AND e.payment_id = r.payment_id
                 AND e.type = 'payment.' || r.status)""",
    ),
    "terminal_stays": _rule(
        "terminal_stays",
        _PAYMENTS,
        # A transition caused by a late fact is marked in its event.
        """SELECT 1 FROM payments_read r WHERE 1 < (
               SELECT count(*) FROM events e
               WHERE e.merchant_id = r.merchant_id AND e.payment_id = r.payment_id
                 AND e.type IN ('payment.succeeded', 'payment.declined', 'payment.not_executed',
                                'payment.canceled', 'payment.expired')
                 AND coalesce(e.detail ->> 'op', '') <> 'late')""",
    ),
    "one_payment_a_key": _rule(
        "one_payment_a_key",
        _PAYMENTS,
        # The payment stores its key's digest: a second key that refers to it has another one. Rows of
        # older versions have none, and are counted.
        """SELECT 1 FROM payments_read r WHERE (
               SELECT count(*) > 1 OR coalesce(r.key_digest <> min(encode(sha256(convert_to(
                   concat_ws(chr(10), 'payment', replace(k.merchant_id::text, '-', ''),
                             k.idempotency_key), 'UTF8')), 'hex')), false)
               FROM idempotency_keys k
               WHERE k.merchant_id = r.merchant_id AND k.payment_id = r.payment_id
                 AND k.movement_id IS NULL)""",
    ),
    "charge_has_payment": Statement(
        "invariant_charge_has_payment",
        """
        SELECT count(*), 0, NULL::uuid, NULL::text FROM orphan_charges WHERE resolved_at IS NULL
        """,
    ),
}
RULES = tuple(_STATEMENTS)
# A payment without events cannot be found by its events, and orphans are few.
_BY_CREATION = frozenset({"payment_has_events", "charge_has_payment"})
_OF_CHANGES = {rule: _rule_of_changes(rule) for rule in RULES if rule not in _BY_CREATION}


@dataclass(frozen=True, slots=True)
class Place:
    """The position of a pass over the rows of a rule: after this row."""

    merchant_id: str = _NOWHERE
    last_id: str = _NOWHERE

    def parameters(self) -> dict[str, str]:
        return {"merchant_id": self.merchant_id, "last_id": self.last_id}


def check_slice(
    pool: ConnectionPool,
    rule: str,
    place: Place,
    deadline: Deadline,
    *,
    since: datetime,
    rows: int = SLICE_ROWS,
    of_changes: bool = False,
) -> tuple[int, Place | None]:
    """(violations, the next slice's position; None: this was the last) of one rule.

    `of_changes`: reads only the rows changed since, if the rule supports it.
    """
    statement = _STATEMENTS[rule]
    if of_changes:
        statement = _OF_CHANGES.get(rule, statement)
    since_ms = int(since.timestamp() * 1000)
    parameters: dict[str, Any] = {
        # The smallest version 7 UUID of that millisecond (RFC 9562).
        "since_id": f"{since_ms:012x}" + "7" + "0" * 19,
        "rows": rows,
        **place.parameters(),
    }
    violations, size, merchant_id, last_id = pool.run(statement, parameters, deadline)[0]
    if size < rows:
        return int(violations), None
    return int(violations), Place(str(merchant_id), str(last_id))


def check_rule(
    pool: ConnectionPool, rule: str, deadline: Deadline, *, window: timedelta = WINDOW
) -> int:
    """Count the violations of one rule among the payments of the last `window`; raises Busy."""
    since = datetime.now(UTC) - window
    place: Place | None = Place()
    total = 0
    while place is not None:
        violations, place = check_slice(pool, rule, place, deadline, since=since)
        total += violations
    return total


def check_invariants(
    pool: ConnectionPool, deadline: Deadline, *, window: timedelta = WINDOW
) -> dict[str, int]:
    """Count the violations of every rule; raises Busy where a check failed."""
    return {rule: check_rule(pool, rule, deadline, window=window) for rule in RULES}


def try_invariants(
    pool: ConnectionPool, deadline: Deadline, *, window: timedelta = WINDOW
) -> dict[str, int | None]:
    """Like `check_invariants`, each rule separately; None: its check failed, which is not 0."""
    found: dict[str, int | None] = {}
    for number, rule in enumerate(RULES):
        # A slow rule gets only its share of the remaining time.
        share = deadline.within(deadline.remaining_s() / (len(RULES) - number))
        try:
            found[rule] = check_rule(pool, rule, share, window=window)
        except Busy:
            found[rule] = None
    return found
