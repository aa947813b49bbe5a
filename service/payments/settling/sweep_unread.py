"""Unreadable objects in the provider's lists: parked, and read again later by the sweep."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID

from service.database.pool.pool import ConnectionPool, Statement
from service.observability.metrics import catalogue as metrics
from service.payments.charge.model import Payment
from service.payments.settling.late import parse_ids
from service.providers.base import Outcome, OutcomeKind, ProviderCharge, Stage
from service.providers.later import Feed, Slice, Unreadable
from service.resilience.deadline import Deadline

log = logging.getLogger(__name__)

# The first retry comes after a minute, each later one after twice the time, at most after half an
# hour: so the alert RowParked, which counts an hour, fires while any object is unread.
AGAIN_S = 60.0
AGAIN_MAX_S = 1800.0
REASON_LENGTH_MAX = 200

_PARK = Statement(
    "late_park_unread",
    """
    INSERT INTO unread_objects (provider, feed, mark, provider_ref, since, until,
        merchant_id, payment_id, key_digest, reason, holds_all, due_at)
    SELECT %(provider)s::text, %(feed)s::text, e.mark, e.provider_ref, e.since, e.until,
           e.merchant_id, e.payment_id, e.key_digest, e.reason, e.holds_all,
           now() + %(due_in_s)s::float8 * interval '1 second'
    FROM unnest(%(marks)s::text[], %(provider_refs)s::text[],
                %(sinces)s::timestamptz[], %(untils)s::timestamptz[],
                %(merchant_ids)s::uuid[], %(payment_ids)s::uuid[], %(key_digests)s::text[],
                %(reasons)s::text[], %(holds_all)s::boolean[])
        AS e (mark, provider_ref, since, until,
              merchant_id, payment_id, key_digest, reason, holds_all)
    ON CONFLICT (provider, feed, mark) DO UPDATE SET
        holds_all = unread_objects.holds_all OR excluded.holds_all
    RETURNING unread_objects.tries = 0 AND unread_objects.created_at = now()
    """,
)

# Leased and postponed in one statement: a process that crashes on an object costs one retry.
_TAKE = Statement(
    "late_take_unread",
    """
    UPDATE unread_objects SET tries = tries + 1,
        due_at = now() + least(%(again_s)s::float8 * 2 ^ least(tries + 1, 20), %(most_s)s::float8)
            * interval '1 second'
    WHERE (provider, feed, mark) IN (
        SELECT provider, feed, mark FROM unread_objects
        WHERE provider = %(provider)s::text AND NOT released AND due_at <= now()
        ORDER BY due_at LIMIT %(limit)s::bigint) AND due_at <= now()
    RETURNING feed, mark, provider_ref, since, until
    """,
)

_DROP = Statement(
    "late_drop_unread",
    """
    DELETE FROM unread_objects
    WHERE provider = %(provider)s::text AND feed = %(feed)s::text AND mark = %(mark)s::text
    RETURNING 1
    """,
)

_SLICES = Statement(
    "late_unread_slices",
    """
    SELECT count(*) FROM unread_objects
    WHERE provider = %(provider)s::text AND feed = %(feed)s::text AND provider_ref IS NULL
      AND NOT released
    """,
)

_COUNTS = Statement(
    "late_unread_counts",
    """
    SELECT count(*), count(*) FILTER (WHERE holds_all) FROM unread_objects
    WHERE provider = %(provider)s::text AND NOT released
    """,
)

_ABOUT = Statement(
    "late_unread_about",
    """
    SELECT provider_ref, payment_id, merchant_id, key_digest, since FROM unread_objects
    WHERE provider = %(provider)s::text AND feed = 'charges' AND NOT released
      AND (key_digest = ANY(%(key_digests)s::text[]) OR payment_id = ANY(%(payment_ids)s::uuid[]))
    """,
)


@dataclass(frozen=True, slots=True)
class Parked:
    """One object, or one slice, that waits for a retry."""

    feed: Feed
    mark: str
    # None: the whole slice is read again.
    provider_ref: str | None
    since: datetime
    until: datetime


class UnreadStore:
    """The unread objects of one provider's lists. Thread-safe."""

    def __init__(self, pool: ConnectionPool, provider: str) -> None:
        self._pool = pool
        self._provider = provider

    def park(
        self,
        feed: Feed,
        found: Sequence[Unreadable],
        part: Slice,
        known: set[tuple[UUID, UUID]],
        deadline: Deadline,
    ) -> None:
        """Store unreadable objects of a slice; `known`: their payments in our database.

        A charge blocks only its own payment if that payment or its client's key is readable;
        else it could be the charge of any lost payment.
        """
        rows: list[tuple[object, ...]] = []
        for one in {one.mark: one for one in found}.values():
            ids = parse_ids(one.merchant_id, one.payment_id)
            is_told = one.key_digest is not None or ids in known
            merchant_id, payment_id = ids or (None, None)
            bounds = (part.since, part.until)
            if one.created_at is not None:
                bounds = (one.created_at, one.created_at + timedelta(seconds=1))
            rows.append(
                (
                    *(one.mark, one.provider_ref, *bounds),
                    *(merchant_id and str(merchant_id), payment_id and str(payment_id)),
                    *(one.key_digest, one.reason[:REASON_LENGTH_MAX]),
                    feed is Feed.CHARGES and not is_told,
                )
            )
        self._park(feed, rows, deadline)

    def park_slice(self, feed: Feed, part: Slice, reason: str, deadline: Deadline) -> None:
        """Store a completely unreadable slice."""
        mark = f"slice_{int(part.since.timestamp())}_{int(part.until.timestamp())}"
        nobody = (None, None, None)
        row = (mark, None, part.since, part.until, *nobody, reason, feed is Feed.CHARGES)
        self._park(feed, [row], deadline)

    def _park(self, feed: Feed, rows: Sequence[tuple[object, ...]], deadline: Deadline) -> None:
        if not rows:
            return
        columns = [list(column) for column in zip(*rows, strict=True)]
        names = (
            "marks",
            "provider_refs",
            "sinces",
            "untils",
            "merchant_ids",
            "payment_ids",
            "key_digests",
            "reasons",
            "holds_all",
        )
        parameters = dict(zip(names, columns, strict=True))
        told = self._pool.run(
            _PARK,
            {
                "provider": self._provider,
                "feed": feed.value,
                "due_in_s": AGAIN_S,
                **parameters,
            },
            deadline,
        )
        new = sum(bool(is_new) for (is_new,) in told)
        if new:
            metrics.rows_parked_total.inc(new)
            log.error("sweep.parked", extra={"feed": feed.value, "objects": new})

    def take(self, limit: int, deadline: Deadline) -> list[Parked]:
        """The objects due for a retry; each is due again later, unless it is dropped."""
        parameters = {"again_s": AGAIN_S, "most_s": AGAIN_MAX_S, "limit": limit}
        rows = self._pool.run(_TAKE, {"provider": self._provider, **parameters}, deadline)
        return [Parked(Feed(feed), *rest) for feed, *rest in rows]

    def drop(self, parked: Parked, deadline: Deadline) -> None:
        """Drop an object that was read and compared."""
        parameters = {"feed": parked.feed.value, "mark": parked.mark}
        self._pool.run(_DROP, {"provider": self._provider, **parameters}, deadline)

    def slices(self, feed: Feed, deadline: Deadline) -> int:
        """The number of parts of a list that wait for a retry."""
        parameters = {"provider": self._provider, "feed": feed.value}
        return int(self._pool.run(_SLICES, parameters, deadline)[0][0])

    def counts(self, deadline: Deadline) -> tuple[int, int]:
        """The number of unread objects, and of those that could be the charge of any lost payment."""
        unread, holding = self._pool.run(_COUNTS, {"provider": self._provider}, deadline)[0]
        return int(unread), int(holding)

    def about(self, payments: Iterable[Payment], deadline: Deadline) -> list[ProviderCharge]:
        """The unread charges that name these payments, as charges in doubt."""
        wanted = list(payments)
        if not wanted:
            return []
        rows = self._pool.run(
            _ABOUT,
            {
                "provider": self._provider,
                "key_digests": [one.key_digest for one in wanted if one.key_digest],
                "payment_ids": [one.payment_id for one in wanted],
            },
            deadline,
        )
        return [
            in_doubt(
                reference,
                payment_id=f"pay_{payment_id.hex}" if payment_id else None,
                merchant_id=str(merchant_id) if merchant_id else None,
                key_digest=key_digest,
                created_at=since,
            )
            for reference, payment_id, merchant_id, key_digest, since in rows
        ]


def in_doubt(
    provider_ref: str | None,
    *,
    payment_id: str | None,
    merchant_id: str | None,
    key_digest: str | None,
    created_at: datetime | None,
) -> ProviderCharge:
    """A charge of which only its owner is known: money may have moved. Without a readable id its
    reference is empty."""
    return ProviderCharge(
        provider_ref=provider_ref or "",
        payment_id=payment_id,
        merchant_id=merchant_id,
        key_digest=key_digest,
        amount_minor=0,
        currency="",
        outcome=Outcome(
            OutcomeKind.UNKNOWN, Stage.ANSWERED, provider_ref=provider_ref, error="mismatch"
        ),
        created_at=created_at or datetime.now(UTC),
    )
