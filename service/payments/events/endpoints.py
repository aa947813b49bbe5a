"""Webhook endpoints of merchants: addresses, signing secrets and redelivery."""

from __future__ import annotations

import base64
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from service.database.pool.pool import Checkout, ConnectionPool, Statement
from service.errors import WrongState
from service.ids import (
    event_id_text,
    new_id,
)
from service.payments import audit
from service.payments.audit import Actor, Entry
from service.payments.events.outbox import TOLD
from service.resilience.deadline import Deadline

# Each event is sent to all of them, so the length of a merchant's list bounds the work.
ENDPOINTS_MAX = 16
# The Standard Webhooks specification asks for 24 to 64 bytes.
SECRET_BYTES = 32
# Covers a deploy of the receiver and a weekend.
OLD_SECRET_SIGNS_FOR_S = 3 * 86400.0


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One row of `webhook_endpoints` and its waiting events, without the secret."""

    merchant_id: UUID
    endpoint_id: UUID
    url: str
    description: str | None
    event_types: list[str]
    status: str
    paused_reason: str | None
    failures: int
    failing_since: datetime | None
    last_error: str | None
    last_delivered_at: datetime | None
    created_at: datetime
    # Events that are still pending, and those whose tries all failed.
    pending: int
    given_up: int


def endpoint_id_text(endpoint_id: UUID) -> str:
    return f"we_{endpoint_id.hex}"


def secret_text(secret: bytes) -> str:
    """The form of the merchant's library: `whsec_` and base64."""
    return "whsec_" + base64.b64encode(secret).decode()


# Counted to a bound: a page of figures must not read a million rows of a dead endpoint.
_WAITING = """
    (SELECT count(*) FROM (SELECT 1 FROM webhook_outbox o WHERE o.merchant_id = w.merchant_id
        AND o.endpoint_id = w.endpoint_id AND o.due_at IS {negation} NULL LIMIT 10000) AS counted)
"""
_COLUMNS = f"""
    w.merchant_id, w.endpoint_id, w.url, w.description, w.event_types, w.status, w.paused_reason,
    w.failures, w.failing_since, w.last_error, w.last_delivered_at, w.created_at,
    {_WAITING.format(negation="NOT")}, {_WAITING.format(negation="")}
"""

_CREATE = Statement(
    "endpoint_create",
    f"""
    WITH w AS (
        INSERT INTO webhook_endpoints
            (merchant_id, endpoint_id, url, description, event_types, secret)
        SELECT %(merchant_id)s::uuid, %(endpoint_id)s::uuid, %(url)s::text,
               %(description)s::text, %(event_types)s::text[], %(secret)s::bytea
        WHERE (SELECT count(*) FROM webhook_endpoints WHERE merchant_id = %(merchant_id)s::uuid)
              < %(most)s::integer
        RETURNING *
    )
    SELECT {_COLUMNS} FROM w
    """,
)
_LIST = Statement(
    "endpoint_list",
    f"""
    SELECT {_COLUMNS} FROM webhook_endpoints w WHERE w.merchant_id = %(merchant_id)s::uuid
      AND (%(endpoint_id)s::uuid IS NULL OR w.endpoint_id = %(endpoint_id)s::uuid)
    ORDER BY w.endpoint_id
    """,
)
# An endpoint enabled again has no failures, and its waiting events are due at once: a thousand in
# this statement, the rest by the background job.
_CHANGE = Statement(
    "endpoint_change",
    f"""
    WITH w AS (
        UPDATE webhook_endpoints SET
            url = coalesce(%(url)s::text, url),
            description = coalesce(%(description)s::text, description),
            event_types = coalesce(%(event_types)s::text[], event_types),
            status = coalesce(%(status)s::text, status),
            paused_reason = CASE %(status)s::text WHEN 'enabled' THEN NULL WHEN 'paused'
                THEN coalesce(paused_reason, 'asked') ELSE paused_reason END,
            failures = CASE WHEN %(status)s::text = 'enabled' THEN 0 ELSE failures END,
            failing_since = CASE WHEN %(status)s::text = 'enabled' THEN NULL
                                 ELSE failing_since END
        WHERE merchant_id = %(merchant_id)s::uuid AND endpoint_id = %(endpoint_id)s::uuid
        RETURNING *
    ), waiting AS (
        SELECT o.event_id FROM webhook_outbox o JOIN w USING (merchant_id, endpoint_id)
        WHERE %(status)s::text = 'enabled' AND o.due_at > now() LIMIT 1000
    ), again AS (
        UPDATE webhook_outbox o SET due_at = now() FROM waiting
        WHERE o.merchant_id = %(merchant_id)s::uuid AND o.endpoint_id = %(endpoint_id)s::uuid
          AND o.event_id = waiting.event_id
    )
    SELECT {_COLUMNS} FROM w
    """,
)
_ROTATE = Statement(
    "endpoint_rotate",
    f"""
    WITH w AS (
        UPDATE webhook_endpoints SET
            old_secret = secret,
            old_secret_until = now() + %(old_signs_for_s)s::float8 * interval '1 second',
            secret = %(secret)s::bytea
        WHERE merchant_id = %(merchant_id)s::uuid AND endpoint_id = %(endpoint_id)s::uuid
        RETURNING *
    )
    SELECT {_COLUMNS} FROM w
    """,
)
# A dead endpoint may have a million deliveries that wait, more than one statement can remove in its time.
# They go first, a batch at a time, so that a request that runs out of time leaves less for the next one.
UNSENT_AT_ONCE = 5000
_DELETE_UNSENT = Statement(
    "endpoint_delete_unsent",
    """
    DELETE FROM webhook_outbox o
    WHERE o.merchant_id = %(merchant_id)s::uuid AND o.endpoint_id = %(endpoint_id)s::uuid
      AND o.event_id IN (
          SELECT event_id FROM webhook_outbox
          WHERE merchant_id = %(merchant_id)s::uuid AND endpoint_id = %(endpoint_id)s::uuid
          ORDER BY event_id LIMIT %(limit)s::integer)
    RETURNING 1
    """,
)
_DELETE = Statement(
    "endpoint_delete",
    """
    WITH w AS (
        DELETE FROM webhook_endpoints
        WHERE merchant_id = %(merchant_id)s::uuid AND endpoint_id = %(endpoint_id)s::uuid
        RETURNING merchant_id, endpoint_id, url
    ), unsent AS (
        DELETE FROM webhook_outbox o USING w
        WHERE o.merchant_id = w.merchant_id AND o.endpoint_id = w.endpoint_id
    )
    SELECT url FROM w
    """,
)
# Read before a change, in its transaction, so that the audit log has both addresses.
_LOCK = Statement(
    "endpoint_lock",
    """
    SELECT url, event_types, description, status FROM webhook_endpoints
    WHERE merchant_id = %(merchant_id)s::uuid AND endpoint_id = %(endpoint_id)s::uuid FOR UPDATE
    """,
)
_TROUBLED = Statement(
    "endpoints_troubled",
    """
    SELECT count(*) FILTER (WHERE status = 'paused' AND paused_reason <> 'asked'),
           count(*) FILTER (WHERE status = 'enabled' AND failures > 0)
    FROM webhook_endpoints
    """,
)
# The id was made within a day of the commit, so that one partition is read instead of all.
_REDELIVER = Statement(
    "redeliver",
    f"""
    WITH event AS (
        SELECT merchant_id, event_id, payment_id, type, created_at FROM events
        WHERE merchant_id = %(merchant_id)s::uuid AND event_id = %(event_id)s::uuid
          AND created_at BETWEEN to_timestamp(%(made_at_s)s::float8) - interval '1 day'
                             AND to_timestamp(%(made_at_s)s::float8) + interval '1 day'
    ), again AS (
        INSERT INTO webhook_outbox
            (merchant_id, endpoint_id, event_id, payment_id, type, event_at)
        SELECT w.merchant_id, w.endpoint_id, e.event_id, e.payment_id, e.type, e.created_at
        FROM event e JOIN webhook_endpoints w ON w.merchant_id = e.merchant_id
        WHERE split_part(e.type, '.', 2) IN {TOLD}
          AND w.status = 'enabled' AND w.event_types && ARRAY['*', e.type]
        ON CONFLICT (merchant_id, endpoint_id, event_id) DO UPDATE SET due_at = now(), tries = 0
        RETURNING endpoint_id
    )
    SELECT (SELECT type FROM event), array(SELECT endpoint_id::text FROM again)
    """,  # Only our own constants are inserted.
)


class EndpointStore:
    """Webhook endpoints in PostgreSQL. Another merchant's endpoint is None, like a missing one."""

    def __init__(self, pool: ConnectionPool) -> None:
        self._pool = pool

    def create(
        self,
        merchant_id: UUID,
        deadline: Deadline,
        *,
        url: str,
        event_types: Sequence[str],
        description: str | None = None,
        actor: Actor = audit.SERVICE,
    ) -> tuple[Endpoint, str]:
        """Create an endpoint: (its row, its secret, which can never be read again).

        Raises WrongState where the merchant has ENDPOINTS_MAX already.
        """
        secret = secrets.token_bytes(SECRET_BYTES)
        endpoint_id = new_id()
        rows = audit.run_audited(
            self._pool,
            _CREATE,
            {
                "merchant_id": merchant_id,
                "endpoint_id": endpoint_id,
                "url": url,
                "description": description,
                "event_types": list(event_types),
                "secret": secret,
                "most": ENDPOINTS_MAX,
            },
            deadline,
            actor=actor,
            entry=lambda _: Entry(
                "webhook_endpoint.created",
                merchant_id,
                target=endpoint_id_text(endpoint_id),
                detail={"url": _shown_url(url), "event_types": list(event_types)},
            ),
        )
        if not rows:
            raise WrongState(f"There are {ENDPOINTS_MAX} endpoints already; delete one first.")
        return _endpoint_of(rows[0]), secret_text(secret)

    def of_merchant(self, merchant_id: UUID, deadline: Deadline) -> list[Endpoint]:
        """All endpoints of the merchant, oldest first."""
        rows = self._pool.run(_LIST, {"merchant_id": merchant_id, "endpoint_id": None}, deadline)
        return [_endpoint_of(row) for row in rows]

    def get(self, merchant_id: UUID, endpoint_id: UUID, deadline: Deadline) -> Endpoint | None:
        """The current endpoint."""
        return self._one(_LIST, merchant_id, endpoint_id, deadline)

    def change(
        self,
        merchant_id: UUID,
        endpoint_id: UUID,
        deadline: Deadline,
        *,
        url: str | None = None,
        event_types: Sequence[str] | None = None,
        description: str | None = None,
        status: str | None = None,
        actor: Actor = audit.SERVICE,
    ) -> Endpoint | None:
        """Change the given fields; `enabled` also resets failures and makes waiting events due at once."""
        ids = _ids(merchant_id, endpoint_id)
        new = {
            "url": url,
            "event_types": None if event_types is None else list(event_types),
            "description": description,
            "status": status,
        }

        def act(transaction: Checkout) -> Endpoint | None:
            before = transaction.run(_LOCK, ids)
            rows = transaction.run(_CHANGE, {**ids, **new})
            if not rows or not before:
                return None
            detail = _changes(dict(zip(new, before[0], strict=True)), new)
            target = endpoint_id_text(endpoint_id)
            audit.write(
                transaction,
                actor,
                Entry("webhook_endpoint.changed", merchant_id, target=target, detail=detail),
            )
            return _endpoint_of(rows[0])

        return audit.in_transaction(self._pool, act, deadline)

    def rotate(
        self,
        merchant_id: UUID,
        endpoint_id: UUID,
        deadline: Deadline,
        *,
        actor: Actor = audit.SERVICE,
    ) -> tuple[Endpoint, str] | None:
        """Replace the secret, shown once; for OLD_SECRET_SIGNS_FOR_S the old one signs too."""
        secret = secrets.token_bytes(SECRET_BYTES)
        rows = audit.run_audited(
            self._pool,
            _ROTATE,
            {
                **_ids(merchant_id, endpoint_id),
                "secret": secret,
                "old_signs_for_s": OLD_SECRET_SIGNS_FOR_S,
            },
            deadline,
            actor=actor,
            entry=lambda _: Entry(
                "webhook_endpoint.secret_rotated",
                merchant_id,
                target=endpoint_id_text(endpoint_id),
            ),
        )
        return (_endpoint_of(rows[0]), secret_text(secret)) if rows else None

    def delete(
        self,
        merchant_id: UUID,
        endpoint_id: UUID,
        deadline: Deadline,
        *,
        actor: Actor = audit.SERVICE,
    ) -> bool:
        """Delete the endpoint and its waiting deliveries.

        Raises Busy where the time is not enough for all of them; the next call continues.
        """
        unsent = {**_ids(merchant_id, endpoint_id), "limit": UNSENT_AT_ONCE}
        while len(self._pool.run(_DELETE_UNSENT, unsent, deadline)) == UNSENT_AT_ONCE:
            pass
        rows = audit.run_audited(
            self._pool,
            _DELETE,
            _ids(merchant_id, endpoint_id),
            deadline,
            actor=actor,
            entry=lambda rows: Entry(
                "webhook_endpoint.deleted",
                merchant_id,
                target=endpoint_id_text(endpoint_id),
                detail={"url": _shown_url(rows[0][0])},
            ),
        )
        return bool(rows)

    def redeliver(
        self,
        merchant_id: UUID,
        event_id: UUID,
        deadline: Deadline,
        *,
        actor: Actor = audit.SERVICE,
    ) -> tuple[str, list[UUID]] | None:
        """Deliver an event to all enabled endpoints again: (its type, the endpoints); None: no such event."""
        rows = audit.run_audited(
            self._pool,
            _REDELIVER,
            {
                "merchant_id": merchant_id,
                "event_id": event_id,
                # RFC 9562: the first 48 bits are the milliseconds since 1970.
                "made_at_s": (event_id.int >> 80) / 1000,
            },
            deadline,
            actor=actor,
            entry=lambda rows: _redelivered(merchant_id, event_id, *rows[0]),
        )
        type_, endpoint_ids = rows[0]
        return None if type_ is None else (type_, [UUID(text) for text in endpoint_ids])

    def troubled(self, deadline: Deadline) -> tuple[int, int]:
        """The counts of all merchants' endpoints that are paused for failures, and that fail now."""
        ((paused, failing),) = self._pool.run(_TROUBLED, {}, deadline)
        return paused, failing

    def _one(
        self,
        statement: Statement,
        merchant_id: UUID,
        endpoint_id: UUID,
        deadline: Deadline,
        **values: Any,
    ) -> Endpoint | None:
        rows = self._pool.run(statement, {**_ids(merchant_id, endpoint_id), **values}, deadline)
        return _endpoint_of(rows[0]) if rows else None


def _redelivered(
    merchant_id: UUID, event_id: UUID, type_: str | None, told: Sequence[str]
) -> Entry | None:
    if type_ is None:
        return None
    detail = {"type": type_, "endpoints": len(told)}
    return Entry("event.redelivered", merchant_id, target=event_id_text(event_id), detail=detail)


def _ids(merchant_id: UUID, endpoint_id: UUID) -> dict[str, UUID]:
    return {"merchant_id": merchant_id, "endpoint_id": endpoint_id}


def _changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """The given fields that differ, as {field: {from, to}}."""
    changed = {}
    for name, value in new.items():
        if value is not None and value != old[name]:
            before, after = old[name], value
            if name == "url":
                before, after = _shown_url(before), _shown_url(after)
            changed[name] = {"from": before, "to": after}
    return changed


def _shown_url(url: str) -> str:
    """The address without its query, which may contain a receiver's token."""
    place, has_query, _ = url.partition("?")
    return f"{place}?..." if has_query else place


def _endpoint_of(row: Sequence[Any]) -> Endpoint:
    merchant_id, endpoint_id, *rest = row
    return Endpoint(merchant_id, endpoint_id, *rest)
