"""What a person does about the sweep's unread objects: lists and releases them, with an audit row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from service.database.pool.pool import ConnectionPool, Statement
from service.payments import audit
from service.payments.audit import Actor, Entry
from service.resilience.deadline import Deadline

_LIST = Statement(
    "late_list_unread",
    """
    SELECT provider, feed, mark, provider_ref, since, merchant_id, payment_id, reason, holds_all,
           released, tries, due_at
    FROM unread_objects
    WHERE NOT released OR %(with_released)s::boolean
    ORDER BY since, provider, feed, mark LIMIT %(limit)s::integer
    """,
)

_RELEASE = Statement(
    "late_release_unread",
    """
    UPDATE unread_objects SET released = true
    WHERE provider = %(provider)s::text AND feed = %(feed)s::text AND mark = %(mark)s::text
      AND NOT released
    RETURNING merchant_id, payment_id, reason, holds_all
    """,
)


@dataclass(frozen=True, slots=True)
class UnreadObject:
    """One row of `unread_objects`."""

    provider: str
    feed: str
    mark: str
    provider_ref: str | None
    since: datetime
    merchant_id: UUID | None
    payment_id: UUID | None
    reason: str
    # It could be the charge of any lost payment: the queue waits for it while commits may be lost.
    holds_all: bool
    released: bool
    tries: int
    due_at: datetime


def list_unread(
    pool: ConnectionPool, deadline: Deadline, *, with_released: bool = False, limit: int = 100
) -> list[UnreadObject]:
    """The unread objects of all providers, the oldest first."""
    parameters = {"with_released": with_released, "limit": limit}
    return [UnreadObject(*row) for row in pool.run(_LIST, parameters, deadline)]


def release(
    pool: ConnectionPool,
    provider: str,
    feed: str,
    mark: str,
    deadline: Deadline,
    *,
    evidence: str,
    actor: Actor,
) -> bool:
    """End an object's effect on payments and on the recovery; False: there is none to release."""

    def entry(rows: Sequence[tuple[object, ...]]) -> Entry:
        merchant_id, payment_id, reason, holds_all = rows[0]
        detail = {
            "provider": provider,
            "feed": feed,
            "reason": reason,
            "holds_all": holds_all,
            "evidence": evidence,
        }
        if payment_id is not None:
            detail["payment_id"] = f"pay_{UUID(str(payment_id)).hex}"
        owner = None if merchant_id is None else UUID(str(merchant_id))
        return Entry("unread.released", owner, target=mark, detail=detail)

    parameters = {"provider": provider, "feed": feed, "mark": mark}
    return bool(audit.run_audited(pool, _RELEASE, parameters, deadline, actor=actor, entry=entry))
