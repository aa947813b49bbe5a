"""Compares our records of the payments with the provider's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from uuid import UUID

from service.database.pool.pool import ConnectionPool
from service.ids import payment_id_text
from service.lab.drills.document import RuleResult, rule_result
from service.lab.drills.load import AMOUNT_MINOR, CURRENCY, Call
from service.payments.charge.model import (
    TERMINAL,
    Status,
)
from service.payments.settling.invariants import try_invariants
from service.providers.base import OutcomeKind, ProviderCharge
from service.resilience.deadline import Deadline

# (id, status, amount, currency, provider reference, target), as the store reads them.
Row = tuple[UUID, str, int, str, str | None, str]
# The provider's charges that moved money, keyed by our payment id.
Charges = Mapping[str, Sequence[ProviderCharge]]
ListCharges = Callable[[datetime, Deadline], Iterator[ProviderCharge]]

# The largest expected difference between the provider's clock and ours.
CLOCKS_DIFFER = timedelta(seconds=30)
_FINAL = frozenset(status.value for status in TERMINAL)


def is_settled(rows: Sequence[Row]) -> bool:
    """Whether every payment of the run is in a final state."""
    return all(row[1] in _FINAL for row in rows)


def charges_of(
    rows: Sequence[Row], list_charges: ListCharges, since: datetime, deadline: Deadline
) -> dict[str, list[ProviderCharge]]:
    """The run's charges from the provider's own listing; raises Busy where it cannot be read."""
    ours = {payment_id_text(row[0]) for row in rows}
    charges: dict[str, list[ProviderCharge]] = {}
    for charge in list_charges(since - CLOCKS_DIFFER, deadline):
        moved_money = charge.outcome.kind is OutcomeKind.SUCCEEDED
        if charge.payment_id in ours and moved_money:
            charges.setdefault(charge.payment_id or "", []).append(charge)
    return charges


def compare(rows: Sequence[Row], charges: Charges, calls: Sequence[Call]) -> list[RuleResult]:
    """The promises about money, each with the number of payments that break it."""
    succeeded = {payment_id_text(row[0]) for row in rows if row[1] == Status.SUCCEEDED}
    charged = {payment_id for payment_id, made in charges.items() if made}
    promised = {call.payment_id for call in calls if call.outcome == "succeeded"}
    stored = {payment_id_text(row[0]) for row in rows}
    accepted = {call.payment_id for call in calls if call.payment_id and not call.is_refused}
    wrong_amount = [
        charge
        for made in charges.values()
        for charge in made
        if (charge.amount_minor, charge.currency) != (AMOUNT_MINOR, CURRENCY)
    ]
    return [
        rule_result("both", "charged_once", sum(len(made) > 1 for made in charges.values())),
        rule_result("both", "succeeded_is_charged", len(succeeded - charged)),
        rule_result("both", "charge_is_recorded", len(charged - succeeded)),
        rule_result("both", "answered_succeeded_is_charged", len(promised - charged)),
        rule_result("provider", "charged_what_was_asked", len(wrong_amount)),
        rule_result("ours", "accepted_is_kept", len(accepted - stored)),
        rule_result("ours", "nothing_left_in_doubt", sum(row[1] not in _FINAL for row in rows)),
    ]


def standing_rules(pool: ConnectionPool, deadline: Deadline) -> list[RuleResult]:
    """The rules that the reconciler checks every minute, over all recent payments."""
    found = try_invariants(pool, deadline, window=timedelta(minutes=30))
    return [rule_result("ours", rule, count) for rule, count in found.items()]
