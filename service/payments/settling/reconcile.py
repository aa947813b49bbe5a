"""Settles payments with an open outcome by a look-up at the provider; never charges on a guess."""

from __future__ import annotations

import logging
from dataclasses import replace
from datetime import UTC, datetime

from service.observability.metrics import catalogue as metrics
from service.payments.charge.handler import PaymentHandler, charge_of
from service.payments.charge.model import Payment, Status
from service.payments.charge.store import PaymentStore
from service.payments.leases.schedule import is_exhausted, next_look_up_s
from service.payments.settling.lease_store import LeaseStore
from service.providers.base import KEY_LIFETIME, Outcome, OutcomeKind, Provider, Stage
from service.resilience.deadline import Deadline

log = logging.getLogger(__name__)

# A confirm that was cut off may still arrive; after twice the provider's deadline it cannot.
QUIESCENCE_S = 10.0
# The pause after our own guard refused a look-up: about the time until its next probe.
REFUSED_AGAIN_S = 1.0
# The pause for another provider's payment: a reconciler with that provider may run after it.
OTHERS_AGAIN_S = 60.0
# The provider's error for a canceled charge: it cannot be executed any more.
CANCELED = "canceled"


class Reconciler:
    """Settles one leased payment at a time; any number may run, in any number of processes."""

    def __init__(
        self,
        store: PaymentStore,
        leases: LeaseStore,
        handler: PaymentHandler,
        provider: Provider,
        *,
        quiescence_s: float = QUIESCENCE_S,
    ) -> None:
        self._store = store
        self._leases = leases
        self._handler = handler
        self._provider = provider
        self._quiescence_s = quiescence_s

    def settle(self, payment: Payment, deadline: Deadline) -> Payment:
        """Look the payment up and write the result; returns the resulting row.

        The caller holds the lease. After a kill at any line the lease ends and the next look-up
        starts again; raises Busy when the database does not answer, without a loss.
        """
        if payment.is_terminal:
            # A settled payment needs no look-up, and must never be sent.
            log.error("payment.ended_and_due", extra={"payment_id": payment.id})
            return payment
        if payment.provider != self._provider.name:
            # Only the provider of the charge knows its state: another provider lacks it.
            self._leases.postpone(payment, OTHERS_AGAIN_S, deadline)
            log.warning("payment.of_another_provider", extra={"payment_id": payment.id})
            return payment
        may_send_again = self._may_send_again(payment)
        if may_send_again:
            # Recorded before the send: its result may be late, and the wait counts from here.
            noted = self._store.note_send(payment, deadline)
            if noted is None:
                return self._store.read(payment, deadline)
            payment = noted
            may_send_again = not payment.is_expired
        charge = charge_of(payment, may_send_again=may_send_again)
        outcome = self._provider.look_up(charge, deadline)
        if outcome.error in ("breaker_open", "bulkhead_full"):
            self._leases.postpone(payment, REFUSED_AGAIN_S, deadline)
            return payment
        proven_absent = outcome.kind is OutcomeKind.NOT_EXECUTED and outcome.stage is Stage.ANSWERED
        if proven_absent and outcome.provider_ref is None and payment.is_prepared_in_doubt:
            # Its own answer reported money, or an earlier call; its absence in the books now does
            # not disprove that.
            outcome = replace(outcome, kind=OutcomeKind.UNKNOWN, error="mismatch")
            proven_absent = False
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

    def _may_send_again(self, payment: Payment) -> bool:
        """Whether a look-up may send the same key once more: one_shot, promised, and in time."""
        return (
            not self._provider.two_phase
            and payment.provider_ref is None
            and payment.promised
            and not payment.is_spent
            and not payment.is_expired
            and _key_is_young(payment)
        )

    def _send_again_or_end(self, payment: Payment, outcome: Outcome, deadline: Deadline) -> Payment:
        """The provider has proven that no money moved: confirm under the next key, or end it."""
        sent_age_s = self._quiescence_s if payment.sent_age_s is None else payment.sent_age_s
        at_rest_in_s = self._quiescence_s - sent_age_s
        if payment.provider_ref is None and outcome.provider_ref is not None:
            # The charge with the reference that we lost: look-ups use it from now on.
            at_rest_in_s = max(at_rest_in_s, REFUSED_AGAIN_S)
        if at_rest_in_s > 0:
            return self._store.record(payment, outcome, op="look_up", due_in_s=at_rest_in_s)
        other = self._charge_of_its_key(payment, deadline)
        if other is not None:
            due_in_s = next_look_up_s(payment.doubt_age_s)
            return self._store.record(payment, other, op="look_up", due_in_s=due_in_s)
        if outcome.error == CANCELED:
            return self._end(payment, outcome, deadline)
        is_spent = payment.is_spent or outcome.is_replay
        if payment.provider_ref is None and not is_spent:
            return self._send_same_key_or_end(payment, outcome, deadline)
        is_over = payment.status is Status.REQUIRES_ACTION or payment.is_expired
        if not is_over and payment.promised and payment.was_confirmed_elsewhere:
            return self._search_or_end(payment, outcome, deadline)
        if is_over or not payment.promised:
            return self._fence_off(payment, outcome, deadline)
        again = self._store.begin_series(payment, deadline)
        if again is None or again.is_expired:
            return self._store.read(payment, deadline)
        confirmed = self._provider.confirm(charge_of(again), deadline)
        return self._handler.record(again, confirmed, op="confirm")

    def _search_or_end(self, payment: Payment, outcome: Outcome, deadline: Deadline) -> Payment:
        """Its key was used for another call of a lost row: no further key is sent.

        The charge of that call is searched by the client's key. If the books lack it, the
        unconfirmed one is canceled, so that neither can move money.
        """
        by_key = replace(charge_of(payment), provider_ref=None)
        found = self._provider.look_up(by_key, deadline)
        if found.kind is not OutcomeKind.NOT_EXECUTED:
            due_in_s = next_look_up_s(payment.doubt_age_s)
            return self._store.record(payment, found, op="look_up", due_in_s=due_in_s)
        return self._fence_off(payment, outcome, deadline)

    def _charge_of_its_key(self, payment: Payment, deadline: Deadline) -> Outcome | None:
        """What forbids to end it or to confirm again: a charge of a lost row under the same client key, or books
        that could not be read. None: its key had no other payment, or the books lack its charge."""
        if payment.books_from is None:
            return None
        by_key = replace(charge_of(payment), provider_ref=None)
        found = self._provider.look_up(by_key, deadline)
        return None if found.kind is OutcomeKind.NOT_EXECUTED else found

    def _send_same_key_or_end(
        self, payment: Payment, outcome: Outcome, deadline: Deadline
    ) -> Payment:
        """Without a replayed saved error no other key may be sent: the same one, or none."""
        if not self._may_send_again(payment):
            return self._end(payment, outcome, deadline)
        again = self._store.note_send(payment, deadline)
        if again is None or again.is_expired:
            return self._store.read(payment, deadline)
        confirmed = self._provider.confirm(charge_of(again), deadline)
        return self._handler.record(again, confirmed, op="confirm")

    def _fence_off(self, payment: Payment, outcome: Outcome, deadline: Deadline) -> Payment:
        """Cancel it at the provider, so that a late call of ours finds no charge to confirm."""
        if payment.provider_ref is None:
            return self._end(payment, outcome, deadline)
        key = f"{payment.provider_key}-cancel"
        canceled = self._provider.cancel(charge_of(payment), key, deadline)
        if canceled.error == CANCELED:
            return self._end(payment, canceled, deadline)
        due_in_s = next_look_up_s(payment.doubt_age_s)
        return self._store.record(payment, canceled, op="cancel", due_in_s=due_in_s)

    def _end(self, payment: Payment, outcome: Outcome, deadline: Deadline) -> Payment:
        """End it as not executed; without a promise its key becomes free."""
        return self._store.give_up(
            payment, Status.NOT_EXECUTED, "proven not executed", deadline, outcome
        )


def _key_is_young(payment: Payment) -> bool:
    return datetime.now(UTC) - payment.created_at < KEY_LIFETIME


def _is_over(payment: Payment) -> bool:
    """Whether a person must decide; not for a payment that waits for the payer's own action."""
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
