"""Settles payments whose outcome is open, by asking the provider; never by charging on a guess."""

from __future__ import annotations

import dataclasses
import logging

from service.observability import metrics
from service.payments.handler import PaymentHandler, charge_of
from service.payments.model import Payment, Status
from service.payments.schedule import is_exhausted, next_look_up_s
from service.payments.settling_store import SettlingStore
from service.payments.store import PaymentStore
from service.providers.base import Outcome, OutcomeKind, Provider, Stage
from service.resilience.deadline import Deadline

log = logging.getLogger(__name__)

# A confirm that was cut off may still be on its way; twice the provider's deadline later it is not.
QUIESCENCE_S = 10.0
# Our own guard refused the look-up: about when it lets the next probe through.
REFUSED_AGAIN_S = 1.0
# Another provider's: whoever runs with that one may be there by then.
OTHERS_AGAIN_S = 60.0
# The provider's word that a charge is canceled: nothing can be executed any more.
CANCELED = "canceled"


class Reconciler:
    """Settles one leased payment at a time; any number of them, in any number of processes."""

    def __init__(
        self,
        store: PaymentStore,
        settling: SettlingStore,
        handler: PaymentHandler,
        provider: Provider,
        *,
        quiescence_s: float = QUIESCENCE_S,
    ) -> None:
        self._store = store
        self._settling = settling
        self._handler = handler
        self._provider = provider
        self._quiescence_s = quiescence_s

    def settle(self, payment: Payment, deadline: Deadline) -> Payment:
        """Look the payment up and write what is known; the row as it then stands.

        The caller holds the lease. Killed anywhere, the lease ends and the next look-up begins
        at the top; raises Busy when the database does not answer, with nothing lost.
        """
        if payment.provider != self._provider.name:
            # Only who was asked to charge can say what became of it: to another it is absent.
            self._settling.postpone(payment, OTHERS_AGAIN_S, deadline)
            log.warning("payment.of_another_provider", extra={"payment_id": payment.id})
            return payment
        outcome = self._provider.look_up(charge_of(payment), deadline)
        if outcome.error in ("breaker_open", "bulkhead_full"):
            self._settling.postpone(payment, REFUSED_AGAIN_S, deadline)
            return payment
        proven_absent = outcome.kind is OutcomeKind.NOT_EXECUTED and outcome.stage is Stage.ANSWERED
        if proven_absent:
            settled = self._send_again_or_end(payment, outcome, deadline)
        elif outcome.kind is OutcomeKind.UNKNOWN and _is_over(payment):
            settled = self._store.give_up(
                payment,
                Status.NEEDS_REVIEW,
                "no proof could be had; a person must look",
                deadline,
                outcome,
            )
            log.error("payment.needs_review", extra={"payment_id": payment.id})
        else:
            settled = self._store.record(
                payment, outcome, op="look_up", due_in_s=next_look_up_s(payment.doubt_age_s)
            )
        _count(payment, settled)
        return settled

    def _send_again_or_end(self, payment: Payment, outcome: Outcome, deadline: Deadline) -> Payment:
        """The provider has proven that nothing moved: confirm under the next key, or end it."""
        at_rest_in_s = self._quiescence_s - (payment.sent_age_s or self._quiescence_s)
        if at_rest_in_s > 0:
            return self._store.record(payment, outcome, op="look_up", due_in_s=at_rest_in_s)
        if payment.status is Status.REQUIRES_ACTION or payment.is_expired:
            outcome = self._fence_off(payment, outcome, deadline)
            if outcome.error != CANCELED:
                return self._store.record(
                    payment, outcome, op="cancel", due_in_s=next_look_up_s(payment.doubt_age_s)
                )
        if outcome.error == CANCELED:
            return self._store.give_up(
                payment, Status.NOT_EXECUTED, "proven not executed", deadline, outcome
            )
        again = self._store.begin_series(payment, deadline)
        if again is None:
            return self._store.read(payment, deadline)
        confirmed = self._provider.confirm(charge_of(again), deadline)
        return self._handler.record(again, confirmed, op="confirm")

    def _fence_off(self, payment: Payment, outcome: Outcome, deadline: Deadline) -> Outcome:
        """Have the provider cancel it, so that a straggler of ours finds nothing to confirm."""
        if outcome.error == CANCELED or payment.provider_ref is None:
            return dataclasses.replace(outcome, error=CANCELED)
        return self._provider.cancel(charge_of(payment), f"{payment.provider_key}-cancel", deadline)


def _is_over(payment: Payment) -> bool:
    """Whether a person must decide; one who waits for the payer's own action cannot."""
    is_doubtful = payment.status in (Status.UNKNOWN, Status.NEEDS_REVIEW)
    return is_doubtful and is_exhausted(payment.look_ups + 1, payment.doubt_age_s)


def _count(before: Payment, after: Payment) -> None:
    if after.status is not before.status and (
        after.is_terminal or after.status is Status.REQUIRES_CAPTURE
    ):
        metrics.reconcile_settled_total.labels(outcome=after.status.value).inc()
        log.info(
            "payment.settled",
            extra={
                "payment_id": after.id,
                "was": before.status.value,
                "status": after.status.value,
                "look_ups": before.look_ups,
            },
        )
