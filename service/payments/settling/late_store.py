"""Late facts in PostgreSQL: hints, due checks, transitions of settled rows, disputes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import psycopg2
import psycopg2.errors

from service.database.pool.pool import ConnectionPool, Statement
from service.ids import new_id
from service.payments.charge.model import OPEN, Payment, Status
from service.payments.charge.reader import payment_of
from service.payments.charge.steps import detail_json
from service.payments.leases.due_rows import pick_due
from service.payments.leases.fair_share import FairShare
from service.payments.leases.schedule import next_look_up_s
from service.payments.movements.model import Movement, MovementStatus
from service.payments.settling import late_statements as statements
from service.payments.settling.late_facts import LATE, late_sources
from service.providers.base import Outcome, OutcomeKind, ProviderCharge
from service.providers.later import EventHint, ProviderDispute, ProviderRefund
from service.resilience.deadline import Deadline

# The tries of a hint before it is dropped; the last pauses are an hour.
HINT_TRIES = 24
_ENDS = {"won": "dispute.won", "lost": "dispute.lost"}
_CLOSED = frozenset({"warning_closed", "prevented"})


class Contradiction(Exception):
    """A constraint refuses the fact: more captured than authorised, or more refunded than captured."""


class AlreadyKnown(Exception):
    """Another process has already written it."""


@dataclass(frozen=True, slots=True)
class LateCheck:
    """A settled payment leased to the caller for a check at the provider."""

    merchant_id: UUID
    payment_id: UUID
    closes: bool
    asked: int
    tries: int


@dataclass(frozen=True, slots=True)
class Dispute:
    """One dispute about a payment in our books."""

    payment_id: UUID
    dispute_ref: str
    amount_minor: int
    currency: str
    reason: str
    status: str
    opened_at: datetime
    updated_at: datetime


class LateStore:
    """Reads and writes late facts about settled payments. One statement a method."""

    def __init__(
        self, pool: ConnectionPool, *, lease_s: float, provider: str | None = None
    ) -> None:
        self._pool = pool
        self._lease_s = lease_s
        self._provider = provider
        self._due_of_merchants = statements.due_checks_of_merchants(
            has_provider=provider is not None
        )
        self._turn = FairShare()

    # --- Hints ----------------------------------------------------------------------------------

    def name_own_hints(self, limit: int, deadline: Deadline) -> int:
        """Assign unnamed hints about our references to their payments; returns the number of hints read.

        The others wait for `unnamed_hints`; an event of a kind that would have our metadata is used up.
        """
        return len(self._pool.run(statements.NAME_OWN_HINTS, {"limit": limit}, deadline))

    def unnamed_hints(self, limit: int, deadline: Deadline) -> list[tuple[str, str]]:
        """(provider, charge's reference) of hints that only the provider can assign."""
        if limit < 1:
            return []
        parameters = {"limit": limit, "max_tries": HINT_TRIES}
        rows = self._pool.run(statements.UNNAMED_HINTS, parameters, deadline)
        return list(
            dict.fromkeys((str(provider), str(charge_ref)) for provider, charge_ref in rows)
        )

    def name_hints(
        self,
        provider: str,
        charge_ref: str,
        ids: tuple[UUID, UUID] | None,
        deadline: Deadline,
    ) -> None:
        """Store the payment of all hints about a charge; None: not ours, and the hints are used up."""
        merchant_id, payment_id = ids or (None, None)
        self._pool.run(
            statements.NAME_HINTS,
            {
                "provider": provider,
                "provider_ref": charge_ref,
                "merchant_id": _text(merchant_id),
                "payment_id": _text(payment_id),
            },
            deadline,
        )

    def receive(
        self,
        provider: str,
        events: Sequence[tuple[EventHint, tuple[UUID, UUID] | None]],
        deadline: Deadline,
    ) -> int:
        """Store events of the provider's feed like webhooks; returns the number of new ones."""
        if not events:
            return 0
        rows = self._pool.run(
            statements.RECEIVE_MANY,
            {
                "provider": provider,
                "event_ids": [event.event_id for event, _ in events],
                "types": [event.type for event, _ in events],
                "provider_refs": [event.charge_ref for event, _ in events],
                "merchant_ids": [_text(ids[0]) if ids else None for _, ids in events],
                "payment_ids": [_text(ids[1]) if ids else None for _, ids in events],
            },
            deadline,
        )
        return len(rows)

    def payments(
        self, ids: Iterable[tuple[UUID, UUID]], deadline: Deadline
    ) -> dict[tuple[UUID, UUID], Payment]:
        """The existing ones of these payments (merchant, payment)."""
        wanted = list(set(ids))
        if not wanted:
            return {}
        rows = self._pool.run(
            statements.PAYMENTS,
            {
                "merchant_ids": [merchant_id for merchant_id, _ in wanted],
                "payment_ids": [payment_id for _, payment_id in wanted],
            },
            deadline,
        )
        found = [payment_of(row) for row in rows]
        return {(payment.merchant_id, payment.payment_id): payment for payment in found}

    def holders(
        self,
        charges: Sequence[tuple[UUID, ProviderCharge]],
        provider: str,
        deadline: Deadline,
    ) -> dict[tuple[UUID, str], Payment]:
        """The payments that these charges (of merchants) belong to, by merchant and reference,
        whatever payments their metadata names: a retry adopts the charge of a row that was lost,
        or that ended before its call was executed."""
        asked = [(merchant_id, one) for merchant_id, one in charges if one.key_digest is not None]
        if not asked:
            return {}
        rows = self._pool.run(
            statements.HOLDERS,
            {
                "merchant_ids": [merchant_id for merchant_id, _ in asked],
                "provider_refs": [charge.provider_ref for _, charge in asked],
                "key_digests": [charge.key_digest for _, charge in asked],
                "provider": provider,
                "open": [status.value for status in OPEN - {Status.REQUIRES_CAPTURE}],
            },
            deadline,
        )
        found = [(str(charge_ref), payment_of(row)) for charge_ref, *row in rows]
        return {(payment.merchant_id, charge_ref): payment for charge_ref, payment in found}

    def strangers(self, merchant_ids: Iterable[UUID], deadline: Deadline) -> dict[UUID, bool]:
        """The foreign ones of these merchants; True: a charge of theirs was already reported."""
        wanted = [str(merchant_id) for merchant_id in set(merchant_ids)]
        if not wanted:
            return {}
        rows = self._pool.run(statements.STRANGERS, {"merchant_ids": wanted}, deadline)
        return {merchant_id: bool(is_told) for merchant_id, is_told in rows}

    def refund_statuses(
        self, ids: Iterable[tuple[UUID, UUID]], deadline: Deadline
    ) -> dict[UUID, MovementStatus]:
        """The statuses of the existing ones of these refunds (merchant, movement)."""
        wanted = list(set(ids))
        if not wanted:
            return {}
        rows = self._pool.run(
            statements.REFUND_STATUSES,
            {
                "merchant_ids": [merchant_id for merchant_id, _ in wanted],
                "movement_ids": [movement_id for _, movement_id in wanted],
            },
            deadline,
        )
        return {movement_id: MovementStatus(status) for movement_id, status in rows}

    # --- Checks ---------------------------------------------------------------------------------

    def take_back(self, payment: Payment, provider_ref: str, deadline: Deadline) -> bool:
        """Give a settled payment without a reference its charge; False: it changed, or another
        payment has the charge."""
        parameters = {"status": payment.status.value, "provider_ref": provider_ref}
        try:
            return bool(
                self._write(statements.TAKE_BACK, _payment_ids(payment) | parameters, deadline)
            )
        except (AlreadyKnown, Contradiction):
            return False

    def ask(self, payment: Payment, deadline: Deadline) -> None:
        """Schedule the check of a settled payment now."""
        parameters = {**_payment_ids(payment), "provider": payment.provider}
        self._pool.run(statements.ASK, parameters, deadline)

    def lease_checks(self, limit: int, deadline: Deadline) -> list[LateCheck]:
        """Lease up to `limit` due checks, merchants in turn, for `lease_s`."""
        picked = pick_due(
            self._pool,
            self._turn,
            oldest=statements.DUE_CHECKS,
            of_merchants=self._due_of_merchants,
            provider=self._provider,
            limit=limit,
            deadline=deadline,
        )
        if not picked:
            return []
        values = {
            "merchant_ids": [due.owner[0] for due in picked],
            "payment_ids": [due.key for due in picked],
            "lease_s": self._lease_s,
        }
        rows = self._pool.run(statements.LEASE_CHECKS, values, deadline)
        return [LateCheck(m, p, *rest) for m, p, *rest in rows]

    def end_check(self, check: LateCheck, deadline: Deadline) -> None:
        """End the check; without effect after a new request for it."""
        self._pool.run(statements.END_CHECK, _ids_of(check), deadline)

    def postpone_check(self, check: LateCheck, due_in_s: float, deadline: Deadline) -> None:
        """Check again in `due_in_s`, unless a new request has arrived."""
        parameters = {**_ids_of(check), "due_in_s": due_in_s}
        self._pool.run(statements.POSTPONE_CHECK, parameters, deadline)

    # --- Moves ----------------------------------------------------------------------------------

    def move(
        self, payment: Payment, target: Status, outcome: Outcome, deadline: Deadline
    ) -> Payment | None:
        """Move a settled payment; raises Contradiction. None where its status differs, or its money is being moved."""
        rows = self._write(
            statements.LATE_MOVE,
            {
                **_payment_ids(payment),
                "status": target.value,
                "sources": late_sources(target),
                "amount_captured": outcome.amount_received,
                "event_id": new_id(),
                "detail": detail_json(outcome, op=LATE, was=payment.status.value),
            },
            deadline,
        )
        return payment_of(rows[0]) if rows else None

    def move_refund(
        self, movement: Movement, found: ProviderRefund, deadline: Deadline
    ) -> MovementStatus | None:
        """Move an ended refund to the provider's status, with the payment's amounts; None where its
        own status differs."""
        target = _REFUND_STATUSES[found.kind]
        decline = found.decline
        rows = self._write(
            statements.LATE_REFUND_MOVE,
            {
                "merchant_id": movement.merchant_id,
                "movement_id": movement.movement_id,
                "status": target.value,
                "source": movement.status.value,
                **_schedule_of(found),
                "provider_ref": found.provider_ref,
                "decline": None
                if decline is None
                else json.dumps({"code": decline.code, "message": decline.message}),
                "event_id": new_id(),
                "detail": detail_json(
                    op=LATE, was=movement.status.value, refund_id=movement.movement_id.hex
                ),
            },
            deadline,
        )
        return target if rows else None

    def add_refund(
        self,
        payment: Payment,
        found: ProviderRefund,
        movement_id: UUID,
        reason: str,
        deadline: Deadline,
    ) -> bool:
        """Add a refund of the provider's without a row of ours, succeeded or pending; False: the
        payment has no room for it."""
        rows = self._write(
            statements.ADD_REFUND,
            {
                **_payment_ids(payment),
                "movement_id": movement_id,
                "status": _REFUND_STATUSES[found.kind].value,
                **_schedule_of(found),
                "amount": found.amount_minor,
                "reason": reason,
                "key_digest": found.key_digest,
                "provider_ref": found.provider_ref,
                "event_id": new_id(),
                "detail": detail_json(op=LATE, refund_id=movement_id.hex, reason=reason),
            },
            deadline,
        )
        return bool(rows)

    def _write(
        self, statement: Statement, parameters: Mapping[str, Any], deadline: Deadline
    ) -> list[tuple[Any, ...]]:
        """Run a move; raises Contradiction or AlreadyKnown where a constraint refuses it."""
        try:
            return self._pool.run(statement, parameters, deadline)
        except psycopg2.errors.UniqueViolation as error:
            raise AlreadyKnown from error
        except psycopg2.IntegrityError as error:
            raise Contradiction from error

    # --- Disputes -------------------------------------------------------------------------------

    def put_dispute(
        self, payment: Payment, found: ProviderDispute, deadline: Deadline
    ) -> list[str]:
        """Store a dispute's state; returns the types of the events written with it."""
        end_type = _ENDS.get(found.status)
        if found.status in _CLOSED:
            end_type = "dispute.closed"
        rows = self._pool.run(
            statements.PUT_DISPUTE,
            {
                **_payment_ids(payment),
                "provider": payment.provider,
                "dispute_ref": found.provider_ref,
                "amount": found.amount_minor,
                "currency": found.currency,
                "reason": found.reason,
                "status": found.status,
                "opened_at": found.opened_at,
                "end_type": end_type,
                "event_id": new_id(),
                "end_event_id": new_id(),
                "detail": detail_json(
                    op=LATE, dispute=found.provider_ref, status=found.status, reason=found.reason
                ),
            },
            deadline,
        )
        return [str(event_type) for (event_type,) in rows]

    def disputes_about(self, payment: Payment, deadline: Deadline) -> Sequence[Dispute]:
        """The disputes of one payment, oldest first; read only where its money has moved."""
        if payment.amount_captured_minor == 0:
            return ()
        found = self.disputes_of(payment.merchant_id, [payment.payment_id], deadline)
        return found.get(payment.payment_id, ())

    def disputes_of(
        self, merchant_id: UUID, payment_ids: Sequence[UUID], deadline: Deadline
    ) -> Mapping[UUID, list[Dispute]]:
        """The disputes of these payments, oldest first."""
        rows = self._pool.run(
            statements.DISPUTES_OF,
            {
                "merchant_id": merchant_id,
                "payment_ids": list(payment_ids),
            },
            deadline,
        )
        found: dict[UUID, list[Dispute]] = {}
        for payment_id, *rest in rows:
            dispute = Dispute(payment_id, *rest)
            found.setdefault(dispute.payment_id, []).append(dispute)
        return found

    def open_disputes(self, deadline: Deadline) -> int:
        """The number of open disputes of all merchants."""
        return int(self._pool.run(statements.OPEN_DISPUTES, {}, deadline)[0][0])


_REFUND_STATUSES = {
    OutcomeKind.SUCCEEDED: MovementStatus.SUCCEEDED,
    OutcomeKind.PENDING: MovementStatus.PENDING,
    OutcomeKind.DECLINED: MovementStatus.DECLINED,
}


def _schedule_of(found: ProviderRefund) -> dict[str, Any]:
    """A pending refund is looked up like one of ours; its age counts from its creation."""
    is_pending = found.kind is OutcomeKind.PENDING
    age_s = (datetime.now(UTC) - found.created_at).total_seconds()
    return {
        "due_in_s": next_look_up_s(max(age_s, 0.0)) if is_pending else None,
        "sent_at": found.created_at if is_pending else None,
    }


def _text(identifier: UUID | None) -> str | None:
    return None if identifier is None else str(identifier)


def _ids_of(check: LateCheck) -> dict[str, Any]:
    return {
        "merchant_id": check.merchant_id,
        "payment_id": check.payment_id,
        "asked": check.asked,
    }


def _payment_ids(payment: Payment) -> dict[str, UUID]:
    return {"merchant_id": payment.merchant_id, "payment_id": payment.payment_id}
