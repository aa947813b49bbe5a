"""The path of one payment, top to bottom."""

from __future__ import annotations

import dataclasses
import logging
from time import monotonic

from service.errors import AmountNotRepresentable, Busy, ProviderUnavailable
from service.observability import metrics, tracing
from service.payments.merchants import DRILL_MERCHANT_ID
from service.payments.model import ChargeRequest, Payment, Status
from service.payments.schedule import next_look_up_s
from service.payments.store import PaymentStore
from service.providers.amounts import Refused
from service.providers.base import Charge, Outcome, OutcomeKind, Provider, Stage
from service.resilience.deadline import Deadline

log = logging.getLogger(__name__)

# Less than this is left after a slow prepare: a confirm would only end in doubt. Send it later.
CONFIRM_NEEDS_S = 0.5
# Our own share of a payment, besides the provider's; the service level counts what is over it.
SLOW_S = 0.5


class PaymentHandler:
    """Turns requests into payments. Used by many threads at once; keeps nothing of its own."""

    def __init__(
        self, store: PaymentStore, provider: Provider, *, provider_timeout_s: float
    ) -> None:
        self._store = store
        self._provider = provider
        self._provider_timeout_s = provider_timeout_s

    def process_payment(self, request: ChargeRequest, deadline: Deadline) -> tuple[Payment, bool]:
        """Claim, prepare, note, confirm, record: (payment, is_new).

        No connection is held between the writes. From the claim on the payment is ours: doubt,
        an outage or our own death leave it to the reconciler. Raises Busy only when nothing was
        accepted, so that the same key again is safe; KeyReused when it never will be.
        """
        started_s = monotonic()
        deadline.require()
        refused = self._provider.amounts.refusal(request.amount_minor, request.currency)
        if refused is not None:
            return self._refuse(request, refused, deadline), False
        available = self._provider.available
        if not available and request.on_outage == "reject":
            raise ProviderUnavailable(
                "The payment provider is known to be down; nothing was stored."
            )
        send_now = available and not request.respond_async
        payment, is_new = self._claim(request, deadline, send_now=send_now)
        if not is_new:
            return payment, False
        provider_ms = 0
        if send_now and payment.is_expired:
            payment = self._expire(payment, deadline)
        elif send_now:
            payment, outcome = self.execute(payment, deadline)
            self._refuse_if_not_executed(payment, outcome, request, deadline)
            provider_ms = sum(attempt["ms"] for attempt in payment.attempts)
        _count(payment, monotonic() - started_s, provider_ms / 1000)
        return payment, True

    def _refuse(self, request: ChargeRequest, refused: Refused, deadline: Deadline) -> Payment:
        """Raise AmountNotRepresentable, with the key unused; a key used before tells as ever."""
        first = self._store.find_first(request, deadline)
        if first is None:
            raise AmountNotRepresentable(refused.field, refused.reason)
        return first

    def _claim(
        self, request: ChargeRequest, deadline: Deadline, *, send_now: bool
    ) -> tuple[Payment, bool]:
        # In one call there is no write between claim and charge: from here on it may be charged.
        # What may have expired is not, before the database's clock was asked.
        in_one_call = send_now and not self._provider.two_phase and request.expires_at is None
        return self._store.claim(
            request,
            deadline,
            provider=self._provider.name,
            status=Status.SENDING if in_one_call else Status.ACCEPTED,
            due_in_s=None if send_now else 0.0,
        )

    def _expire(self, payment: Payment, deadline: Deadline) -> Payment:
        """End a payment whose time was over when it came; where that fails, the queue does it."""
        try:
            return self._store.give_up(
                payment, Status.EXPIRED, "not sent before expires_at", deadline
            )
        except Busy:
            return payment

    def execute(self, payment: Payment, deadline: Deadline) -> tuple[Payment, Outcome]:
        """Send a leased payment: the row as it then stands, and the last outcome.

        Also the way of a queued payment. Never raises for a fault of provider or database: what
        could not be written is found out again by the reconciler, from the same row.
        """
        deadline = deadline.within(self._provider_timeout_s)
        if payment.status is Status.ACCEPTED:
            prepared = self._prepare(payment, deadline)
            if prepared.kind is not OutcomeKind.PENDING or deadline.remaining_s() < CONFIRM_NEEDS_S:
                return self.record(payment, prepared, op="prepare"), prepared
            noted = self._note(payment, prepared, deadline)
            if noted is None:
                return payment, prepared
            payment = noted
        outcome = self._provider.confirm(charge_of(payment), deadline)
        return self.record(payment, outcome, op="confirm"), outcome

    def _prepare(self, payment: Payment, deadline: Deadline) -> Outcome:
        if payment.provider_ref is not None:
            # By an earlier try that had no time left to confirm: a second one would be another's.
            return Outcome(OutcomeKind.PENDING, Stage.NOT_SENT, provider_ref=payment.provider_ref)
        prepared = self._provider.prepare(charge_of(payment), deadline)
        if prepared.kind is OutcomeKind.UNKNOWN:
            # Unconfirmed, it moves no money: doubt about it is no doubt about money.
            return dataclasses.replace(prepared, kind=OutcomeKind.NOT_EXECUTED)
        return prepared

    def _note(self, payment: Payment, prepared: Outcome, deadline: Deadline) -> Payment | None:
        try:
            return self._store.note_reference(payment, prepared, deadline)
        except Busy as error:
            # Not confirmed, so nothing can move: it stays accepted until the lease ends.
            log.warning(
                "payment.reference_not_noted", extra={"payment_id": payment.id, "error": error.code}
            )
            return None

    def record(self, payment: Payment, outcome: Outcome, *, op: str) -> Payment:
        """Write what a call came to; when that fails, the row stays as it was, and due."""
        try:
            recorded = self._store.record(
                payment, outcome, op=op, due_in_s=next_look_up_s(payment.doubt_age_s)
            )
        except Busy as error:
            # Harmless: the reconciler asks the provider again when the lease ends.
            log.warning(
                "payment.outcome_not_recorded",
                extra={"payment_id": payment.id, "outcome": outcome.kind, "error": error.code},
            )
            return payment
        _log(recorded, outcome, op)
        return recorded

    def _refuse_if_not_executed(
        self, payment: Payment, outcome: Outcome, request: ChargeRequest, deadline: Deadline
    ) -> None:
        """Tell who asked for it that the provider is down, and free the key for the same call."""
        if request.on_outage != "reject" or outcome.kind is not OutcomeKind.NOT_EXECUTED:
            return
        try:
            is_withdrawn = self._store.withdraw(payment, request.idempotency_key, deadline)
        except Busy:
            return  # It stays ours and will be sent: the answer must not say otherwise.
        if is_withdrawn:
            raise ProviderUnavailable("The payment provider did not take the payment.")


def charge_of(payment: Payment) -> Charge:
    """The payment in the provider's terms."""
    return Charge(
        payment_id=payment.id,
        merchant_id=str(payment.merchant_id),
        amount_minor=payment.amount_minor,
        currency=payment.currency,
        payment_method=payment.payment_method,
        provider_key=payment.provider_key,
        provider_ref=payment.provider_ref,
        capture_automatically=payment.capture_method == "automatic",
        reference=payment.reference,
        customer=payment.customer,
        metadata=payment.metadata,
        created_at=payment.created_at,
    )


def _count(payment: Payment, took_s: float, provider_s: float) -> None:
    labels = {"provider": payment.provider, "outcome": payment.status.value}
    metrics.payments_total.labels(**labels).inc()
    metrics.payment_duration_seconds.labels(**labels).observe(took_s, tracing.exemplar())
    if took_s - provider_s > SLOW_S and payment.merchant_id != DRILL_MERCHANT_ID:
        metrics.payments_slow_total.inc()


def _log(payment: Payment, outcome: Outcome, op: str) -> None:
    level = logging.WARNING if outcome.kind is OutcomeKind.UNKNOWN else logging.INFO
    log.log(
        level,
        "payment.%s",
        payment.status.value,
        extra={
            "payment_id": payment.id,
            "provider": payment.provider,
            "op": op,
            "outcome": outcome.kind.value,
            "stage": outcome.stage.value,
            "error": outcome.error,
            "ms": outcome.ms,
        },
    )
