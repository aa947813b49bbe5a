"""Delivers events to merchants: leases due deliveries, signs and sends them, records the result."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import logging
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from service.database.pool.pool import ConnectionPool, Statement
from service.ids import (
    event_id_text,
    new_id,
    payment_id_text,
)
from service.observability.metrics import catalogue as metrics
from service.payments.events.endpoints import endpoint_id_text
from service.payments.leases.fair_share import NO_OWNER, Due, FairShare
from service.payments.leases.run_all import (
    RunAll,
)
from service.providers.http.transport import TransportError
from service.providers.http.webhook_sender import Receipt, WebhookSender
from service.resilience.deadline import Deadline

log = logging.getLogger(__name__)

_MINUTE, _HOUR, _DAY = 60.0, 3600.0, 86400.0
# The schedule that the Standard Webhooks specification proposes: a little over three days.
PAUSES_S = (
    *(5.0, 5 * _MINUTE, 30 * _MINUTE, 2 * _HOUR, 5 * _HOUR),
    *(10 * _HOUR, 14 * _HOUR, 20 * _HOUR, _DAY),
)
# Jitter: events that failed together must not be retried together.
JITTER = 0.2
# An endpoint that failed all this time is paused; fewer tries than this prove nothing.
PAUSE_AFTER_S = 3 * _DAY
PAUSE_AFTER_FAILURES = 10
# The receiver's own statement that it will never accept events again.
GONE = 410
# The write that ends a delivery has its own time limit, also after a slow receiver.
NOTE_TIMEOUT_S = 2.0
TIDIED_AT_ONCE = 1000

# Endpoints take turns: one with a hundred thousand events does not delay another. A failing one
# gets one event at a time, in the other of the two loops, so that its timeouts delay no other.
_DUE = Statement(
    "due_deliveries",
    """
    SELECT o.merchant_id, o.endpoint_id, o.event_id,
           w.status = 'enabled' AND (w.failures > 0) = %(failing)s::boolean
    FROM (
        SELECT merchant_id, endpoint_id, event_id, due_at FROM webhook_outbox
        WHERE due_at <= now() ORDER BY due_at LIMIT %(limit)s::integer
    ) AS o (merchant_id, endpoint_id, event_id, due_at)
    JOIN webhook_endpoints w ON w.merchant_id = o.merchant_id AND w.endpoint_id = o.endpoint_id
    ORDER BY o.due_at, o.event_id
    """,
)

# One probe of the index for each endpoint; NULLS FIRST as in lease_statements.py.
_DUE_OF_ENDPOINTS = Statement(
    "due_deliveries_of_endpoints",
    """
    SELECT w.merchant_id, w.endpoint_id, o.event_id
    FROM webhook_endpoints w
    CROSS JOIN LATERAL (
        SELECT event_id FROM webhook_outbox
        WHERE merchant_id = w.merchant_id AND endpoint_id = w.endpoint_id AND due_at <= now()
        ORDER BY due_at NULLS FIRST LIMIT %(places)s::integer
    ) AS o (event_id)
    WHERE (w.merchant_id, w.endpoint_id)
          > (%(after_merchant)s::uuid, %(after_endpoint)s::uuid)
      AND w.status = 'enabled' AND (w.failures > 0) = %(failing)s::boolean
    ORDER BY w.merchant_id, w.endpoint_id LIMIT %(limit)s::integer
    """,
)

_LEASE = Statement(
    "lease_deliveries",
    """
    WITH o AS (
        UPDATE webhook_outbox SET fence = fence + 1,
            due_at = now() + %(lease_s)s::float8 * interval '1 second'
        WHERE due_at <= now() AND (merchant_id, endpoint_id, event_id) IN (
            SELECT due.merchant_id, due.endpoint_id, due.event_id
            FROM unnest(%(merchant_ids)s::uuid[], %(endpoint_ids)s::uuid[],
                        %(event_ids)s::uuid[]) AS due (merchant_id, endpoint_id, event_id))
        RETURNING *
    )
    SELECT o.merchant_id, o.endpoint_id, o.event_id, o.payment_id, o.type, o.event_at, o.tries,
           o.fence, w.url, w.secret,
           CASE WHEN w.old_secret_until > now() THEN w.old_secret END,
           p.reference, p.amount, p.currency, p.amount_captured, p.amount_refunded
    FROM o JOIN webhook_endpoints w USING (merchant_id, endpoint_id)
    LEFT JOIN payments p ON p.merchant_id = o.merchant_id AND p.payment_id = o.payment_id
    """,
)

# The endpoint's row is written once a minute, not with each of its events. After a failure, waiting
# events are due at once.
_DELIVERED = Statement(
    "delivered",
    """
    WITH o AS (
        DELETE FROM webhook_outbox
        WHERE merchant_id = %(merchant_id)s::uuid AND endpoint_id = %(endpoint_id)s::uuid
          AND event_id = %(event_id)s::uuid AND fence = %(fence)s::bigint
    ), before AS (
        SELECT failures FROM webhook_endpoints
        WHERE merchant_id = %(merchant_id)s::uuid AND endpoint_id = %(endpoint_id)s::uuid
    ), w AS (
        UPDATE webhook_endpoints SET failures = 0, failing_since = NULL, last_error = NULL,
            last_delivered_at = now()
        WHERE merchant_id = %(merchant_id)s::uuid AND endpoint_id = %(endpoint_id)s::uuid
          AND (failures > 0
               OR coalesce(last_delivered_at < now() - interval '1 minute', true))
    ), waiting AS (
        SELECT event_id FROM webhook_outbox
        WHERE (SELECT failures FROM before) > 0 AND due_at > now()
          AND merchant_id = %(merchant_id)s::uuid AND endpoint_id = %(endpoint_id)s::uuid
          AND event_id <> %(event_id)s::uuid
        LIMIT 1000
    )
    UPDATE webhook_outbox o SET due_at = now() FROM waiting
    WHERE o.merchant_id = %(merchant_id)s::uuid AND o.endpoint_id = %(endpoint_id)s::uuid
      AND o.event_id = waiting.event_id
    """,
)

_FAILED = Statement(
    "not_delivered",
    """
    WITH o AS (
        UPDATE webhook_outbox SET tries = tries + 1,
            due_at = now() + %(due_in_s)s::float8 * interval '1 second'
        WHERE merchant_id = %(merchant_id)s::uuid AND endpoint_id = %(endpoint_id)s::uuid
          AND event_id = %(event_id)s::uuid AND fence = %(fence)s::bigint
        RETURNING merchant_id, endpoint_id
    ), judged AS (
        SELECT w.merchant_id, w.endpoint_id,
               CASE WHEN %(is_gone)s::boolean THEN 'gone'
                    WHEN w.failures + 1 >= %(pause_after_failures)s::integer
                     AND w.failing_since
                         <= now() - %(pause_after_s)s::float8 * interval '1 second'
                    THEN 'failing' END AS paused_reason
        FROM o JOIN webhook_endpoints w USING (merchant_id, endpoint_id)
    ), w AS (
        UPDATE webhook_endpoints w SET
            failures = w.failures + 1,
            failing_since = coalesce(w.failing_since, now()),
            last_error = %(error)s::text,
            status = CASE WHEN j.paused_reason IS NULL THEN 'enabled' ELSE 'paused' END,
            paused_reason = j.paused_reason
        FROM judged j
        WHERE w.merchant_id = j.merchant_id AND w.endpoint_id = j.endpoint_id
          AND w.status = 'enabled'
        RETURNING w.*
    ), event AS (
        INSERT INTO events (merchant_id, event_id, type, detail)
        SELECT merchant_id, %(paused_event_id)s::uuid, 'webhook_endpoint.paused',
               jsonb_build_object('endpoint_id', 'we_' || replace(endpoint_id::text, '-', ''),
                   'reason', paused_reason, 'failures', failures, 'last_error', last_error)
        FROM w WHERE status = 'paused'
    )
    SELECT paused_reason FROM w WHERE status = 'paused'
    """,
)

# A receiver's Retry-After applies to all of its events. Another deliverer's lease on one of them only
# gets longer. An earlier success makes them due again, as after any failure.
_PUT_OFF = Statement(
    "endpoint_put_off",
    """
    UPDATE webhook_outbox o SET due_at = %(until)s::timestamptz
    FROM (
        SELECT event_id FROM webhook_outbox
        WHERE merchant_id = %(merchant_id)s::uuid AND endpoint_id = %(endpoint_id)s::uuid
          AND due_at < %(until)s::timestamptz AND event_id <> %(event_id)s::uuid
        LIMIT 1000
    ) AS early
    WHERE o.merchant_id = %(merchant_id)s::uuid AND o.endpoint_id = %(endpoint_id)s::uuid
      AND o.event_id = early.event_id AND o.due_at < %(until)s::timestamptz
    """,
)

# Deliveries of a paused endpoint are set aside, so that no lease query must skip them.
_SHELVE = Statement(
    "shelve_deliveries",
    """
    UPDATE webhook_outbox o SET due_at = stray.due_at
    FROM (
        SELECT w.merchant_id, w.endpoint_id, o.event_id, 'infinity'::timestamptz
        FROM webhook_endpoints w CROSS JOIN LATERAL (
            SELECT event_id FROM webhook_outbox
            WHERE merchant_id = w.merchant_id AND endpoint_id = w.endpoint_id
              AND due_at < 'infinity' LIMIT %(limit)s::integer) AS o (event_id)
        WHERE w.status = 'paused'
        UNION ALL
        SELECT w.merchant_id, w.endpoint_id, o.event_id, now()
        FROM webhook_endpoints w CROSS JOIN LATERAL (
            SELECT event_id FROM webhook_outbox
            WHERE merchant_id = w.merchant_id AND endpoint_id = w.endpoint_id
              AND due_at = 'infinity' LIMIT %(limit)s::integer) AS o (event_id)
        WHERE w.status <> 'paused'
        LIMIT %(limit)s::integer
    ) AS stray (merchant_id, endpoint_id, event_id, due_at)
    WHERE o.merchant_id = stray.merchant_id AND o.endpoint_id = stray.endpoint_id
      AND o.event_id = stray.event_id
    RETURNING 1
    """,
)


@dataclass(frozen=True, slots=True)
class Delivery:
    """One event for one endpoint, leased to the caller."""

    merchant_id: UUID
    endpoint_id: UUID
    event_id: UUID
    payment_id: UUID | None
    type: str
    event_at: datetime
    tries: int
    fence: int
    url: str
    # Secrets, newest first; both sign during a replacement.
    secrets: list[bytes]
    about: dict[str, Any]


class Deliverer:
    """Delivers due events. Any number may run, in any number of processes: each row is leased."""

    def __init__(
        self,
        pool: ConnectionPool,
        sender: WebhookSender,
        *,
        timeout_s: float,
        pauses_s: Sequence[float] = PAUSES_S,
        pause_after_s: float = PAUSE_AFTER_S,
    ) -> None:
        self._pool = pool
        self._sender = sender
        self._timeout_s = timeout_s
        self._pauses_s = pauses_s
        self._pause_after_s = pause_after_s
        # Failing endpoints have a separate loop.
        self._turns = {False: FairShare(), True: FairShare()}

    def deliver(self, limit: int, run_all: RunAll, deadline: Deadline, *, failing: bool) -> int:
        """Deliver up to `limit` due events to endpoints that fail, or to those that do not.

        Returns the number of due events. Raises Busy without a database.
        """
        due = self._lease(limit, deadline, failing=failing)
        run_all(self._deliver, due)
        return len(due)

    def tidy(self, deadline: Deadline) -> None:
        """Set deliveries of paused endpoints aside, and take them back for resumed ones."""
        self._pool.run(_SHELVE, {"limit": TIDIED_AT_ONCE}, deadline)

    def _lease(self, limit: int, deadline: Deadline, *, failing: bool) -> list[Delivery]:
        picked = self._pick(limit, deadline, failing=failing)
        if not picked:
            return []
        values = {
            "merchant_ids": [due.owner[0] for due in picked],
            "endpoint_ids": [due.owner[1] for due in picked],
            "event_ids": [due.key for due in picked],
            # Longer than a holder needs: the call, then its write.
            "lease_s": self._timeout_s + 2 * NOTE_TIMEOUT_S,
        }
        return [_delivery_of(row) for row in self._pool.run(_LEASE, values, deadline)]

    def _pick(self, limit: int, deadline: Deadline, *, failing: bool) -> list[Due]:
        def oldest(most: int) -> list[Due]:
            values = {"limit": most, "failing": failing}
            return [
                Due((str(merchant_id), str(endpoint_id)), str(event_id), is_ours)
                for merchant_id, endpoint_id, event_id, is_ours in self._pool.run(
                    _DUE, values, deadline
                )
            ]

        def behind(owner: tuple[str, ...] | None) -> list[Due]:
            after_merchant, after_endpoint = owner or (str(NO_OWNER), str(NO_OWNER))
            values = {
                "after_merchant": after_merchant,
                "after_endpoint": after_endpoint,
                "failing": failing,
                "places": 1 if failing else limit,
                "limit": limit * limit,
            }
            rows = self._pool.run(_DUE_OF_ENDPOINTS, values, deadline)
            return [
                Due((str(merchant_id), str(endpoint_id)), str(event_id))
                for merchant_id, endpoint_id, event_id in rows
            ]

        picked = self._turns[failing].pick(limit, oldest, behind)
        if failing:
            # One event of each endpoint, its oldest.
            picked = list({due.owner: due for due in reversed(picked)}.values())
        return picked

    def _deliver(self, delivery: Delivery) -> bool:
        """One try under its lease; returns whether the receiver accepted it."""
        body = body_of(delivery)
        headers = signed_headers(delivery.event_id, body, delivery.secrets, now_s=time.time())
        try:
            receipt = self._sender.post(
                delivery.url, body, headers, Deadline.after(self._timeout_s)
            )
            error = None if 200 <= receipt.status < 300 else f"status {receipt.status}"
        except TransportError as refused:
            receipt, error = Receipt(0), refused.kind
        if error is None:
            self._pool.run(_DELIVERED, _lease_of(delivery), Deadline.after(NOTE_TIMEOUT_S))
            metrics.webhook_deliveries_total.labels("delivered").inc()
            log.debug("webhook.delivered", extra=_told_of(delivery))
        else:
            self._note_failure(delivery, error, receipt)
        return error is None

    def _note_failure(self, delivery: Delivery, error: str, receipt: Receipt) -> None:
        is_last = delivery.tries >= len(self._pauses_s)
        rows = self._pool.run(
            _FAILED,
            {
                **_lease_of(delivery),
                "due_in_s": None if is_last else self._pause_s(delivery, receipt),
                "error": error,
                "is_gone": receipt.status == GONE,
                "pause_after_s": self._pause_after_s,
                "pause_after_failures": PAUSE_AFTER_FAILURES,
                "paused_event_id": new_id(),
            },
            Deadline.after(NOTE_TIMEOUT_S),
        )
        if receipt.retry_after_s:
            self._put_off(delivery, receipt.retry_after_s)
        result = "given_up" if is_last else "retried"
        metrics.webhook_deliveries_total.labels(result).inc()
        log.warning("webhook.%s", result, extra={**_told_of(delivery), "error": error})
        for (reason,) in rows:
            log.error(
                "webhook_endpoint.paused",
                extra={"endpoint_id": endpoint_id_text(delivery.endpoint_id), "reason": reason},
            )

    def _put_off(self, delivery: Delivery, wait_s: float) -> None:
        """Postpone all deliveries to the endpoint by the wait that it requested."""
        until = datetime.now(UTC) + timedelta(seconds=wait_s)
        self._pool.run(
            _PUT_OFF,
            {**_lease_of(delivery), "until": until},
            Deadline.after(NOTE_TIMEOUT_S),
        )

    def _pause_s(self, delivery: Delivery, receipt: Receipt) -> float:
        """The schedule's pause, or the longer one that the receiver requested."""
        return max(_spread(self._pauses_s[delivery.tries]), receipt.retry_after_s or 0.0)


def body_of(delivery: Delivery) -> bytes:
    """The receiver's body: the event type and its payment's id; the link has the full object."""
    data: dict[str, Any] = {}
    if delivery.payment_id is not None:
        payment_id = payment_id_text(delivery.payment_id)
        # The state at the time of sending: receivers may get events out of order.
        data = {"payment_id": payment_id, **delivery.about}
        data["links"] = {"payment": f"/v1/payments/{payment_id}"}
    document = {
        "id": event_id_text(delivery.event_id),
        "type": delivery.type,
        "timestamp": delivery.event_at.astimezone(UTC).isoformat().replace("+00:00", "Z"),
        "data": data,
    }
    return json.dumps(document, separators=(",", ":")).encode()


def signed_headers(
    event_id: UUID, body: bytes, secrets: Sequence[bytes], *, now_s: float
) -> dict[str, str]:
    """The Standard Webhooks headers: the id is the same in every try, the time is that of this try."""
    webhook_id, stamp = event_id_text(event_id), str(int(now_s))
    signed = f"{webhook_id}.{stamp}.".encode() + body
    signatures = (
        base64.b64encode(hmac.new(secret, signed, hashlib.sha256).digest()).decode()
        for secret in secrets
    )
    return {
        "Content-Type": "application/json",
        "webhook-id": webhook_id,
        "webhook-timestamp": stamp,
        "webhook-signature": " ".join(f"v1,{signature}" for signature in signatures),
    }


def _lease_of(delivery: Delivery) -> dict[str, Any]:
    return {
        "merchant_id": delivery.merchant_id,
        "endpoint_id": delivery.endpoint_id,
        "event_id": delivery.event_id,
        "fence": delivery.fence,
    }


def _told_of(delivery: Delivery) -> dict[str, Any]:
    """The log fields of a try; the address may contain the receiver's own secrets."""
    return {
        "endpoint_id": endpoint_id_text(delivery.endpoint_id),
        "event_id": event_id_text(delivery.event_id),
        "type": delivery.type,
        "tries": delivery.tries + 1,
    }


def _spread(pause_s: float) -> float:
    return pause_s * random.uniform(1 - JITTER, 1 + JITTER)  # noqa: S311  # Spread, not secrecy.


def _delivery_of(row: Sequence[Any]) -> Delivery:
    merchant_id, endpoint_id, event_id, payment_id, type_, event_at, tries, fence, url, *rest = row
    secret, old_secret, reference, amount, currency, captured, refunded = rest
    return Delivery(
        merchant_id,
        endpoint_id,
        event_id,
        payment_id,
        type_,
        event_at,
        tries,
        fence,
        url,
        [bytes(key) for key in (secret, old_secret) if key is not None],
        {
            "reference": reference,
            "amount": amount,
            "currency": currency,
            "amount_captured": captured,
            "amount_refunded": refunded,
        },
    )
