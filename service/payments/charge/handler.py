"""The path of one payment, from request to record."""

from __future__ import annotations

import contextlib
import logging
from dataclasses import replace
from time import monotonic
from typing import NoReturn

from service.errors import (
    AcceptanceUnknown,
    AmountNotRepresentable,
    Busy,
    DatabaseUnavailable,
    KeyInFlight,
    KeyReused,
    ProviderUnavailable,
)
from service.observability import tracing
from service.observability.metrics import catalogue as metrics
from service.payments.charge.lost_charges import LostCharges
from service.payments.charge.model import (
    UNSETTLED,
    ChargeRequest,
    Loss,
    LostCharge,
    Payment,
    Status,
)
from service.payments.charge.provider_keys import provider_key
from service.payments.charge.store import PaymentStore
from service.payments.leases.schedule import next_look_up_s
from service.payments.merchants import DRILL_MERCHANT_ID
from service.providers.amounts import Refused
from service.providers.base import (
    KEY_USED,
    Charge,
    Outcome,
    OutcomeKind,
    PayerAction,
    Provider,
    Stage,
)
from service.resilience.deadline import Deadline

log = logging.getLogger(__name__)

# With less time than this after a slow prepare, a confirm would only end in doubt: send it later.
CONFIRM_NEEDS_S = 0.5
# Answers to a prepare other than an unconfirmed charge of ours: money may have moved. Any other
# doubt about a prepare is not a doubt about money.
_PREPARED_IN_DOUBT = frozenset({"mismatch", KEY_USED})
_TOO_LATE = Outcome(OutcomeKind.NOT_EXECUTED, Stage.NOT_SENT, error="deadline")
# Commits may be lost, and the books could not be read: as if there was no time to send it.
_UNPROVEN = replace(_TOO_LATE, error_detail="the provider's books were not compared in time")
# The limit of our own share of a payment, without the provider's; the service level counts slower ones.
SLOW_S = 0.5


class PaymentHandler:
    """Turns requests into payments. Thread-safe and stateless."""

    def __init__(
        self, store: PaymentStore, provider: Provider, *, provider_timeout_s: float
    ) -> None:
        self._store = store
        self._provider = provider
        self._provider_timeout_s = provider_timeout_s
        self._lost_charges = LostCharges(store, provider)

    def process_payment(self, request: ChargeRequest, deadline: Deadline) -> tuple[Payment, bool]:
        """Claim, prepare, record the reference, confirm, record the outcome: (payment, is_new).

        No connection is held between the writes. From the claim on we own the payment: doubt, an
        outage or a crash leave it to the reconciler. Raises Busy only for a payment that was not
        accepted, so that a repeat of the key is safe (AcceptanceUnknown: acceptance is in doubt);
        KeyReused when a repeat never succeeds.
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
        # A payment to be refused in an outage never waits in the queue: its caller waits instead.
        may_queue = request.on_outage != "reject"
        send_now = available and not (request.respond_async and may_queue)
        payment, is_new = self._claim(request, deadline, send_now=send_now)
        if not is_new:
            return self._promise(payment, deadline), False
        provider_ms = 0
        if send_now:
            payment = self._send_first(payment, request, deadline)
            provider_ms = sum(attempt["ms"] for attempt in payment.attempts)
        _count(payment, monotonic() - started_s, provider_ms / 1000)
        return payment, True

    def _refuse(self, request: ChargeRequest, refused: Refused, deadline: Deadline) -> Payment:
        """Raise AmountNotRepresentable and leave the key unused; a used key gets its usual answer."""
        first = self._store.find_first(request, deadline)
        if first is None:
            raise AmountNotRepresentable(refused.field, refused.reason)
        return self._promise(first, deadline)

    def _claim(
        self, request: ChargeRequest, deadline: Deadline, *, send_now: bool
    ) -> tuple[Payment, bool]:
        # In one_shot no write is between claim and charge: from here on it may be charged. A payment
        # that may have expired is not sent before a check with the database's clock.
        in_one_call = send_now and not self._provider.two_phase and request.expires_at is None
        return self._store.claim(
            request,
            deadline,
            provider=self._provider.name,
            status=Status.SENDING if in_one_call else Status.ACCEPTED,
            due_in_s=None if send_now else 0.0,
        )

    def _promise(self, payment: Payment, deadline: Deadline) -> Payment:
        """The payment of an earlier call; for an answer of 202 the promise is stored first."""
        if payment.promised or payment.status not in UNSETTLED:
            return payment
        promised = self._store.promise(payment, deadline)
        if promised is None:
            raise KeyInFlight("The first call with this idempotency key is being ended.")
        return promised

    def _send_first(self, payment: Payment, request: ChargeRequest, deadline: Deadline) -> Payment:
        """Send a newly claimed payment. The promise is stored before every answer of 202.

        Raises Busy without a promise: the background then ends the payment and never sends it.
        """
        try:
            adopted = self._adopted(payment, deadline)
        except Busy:
            # Neither proof could be had: the queue sends it, once the sweep has compared the books.
            outcome, op = _UNPROVEN, "prepare"
        else:
            if adopted is not None:
                return adopted
            if payment.is_expired:
                reason = "not sent before expires_at"
                return self._store.give_up(payment, Status.EXPIRED, reason, deadline)
            payment, outcome, op = self._send(payment, deadline)
        is_unsent = outcome.kind is OutcomeKind.NOT_EXECUTED or (
            payment.status is Status.ACCEPTED and outcome.kind is OutcomeKind.PENDING
        )
        if is_unsent and request.on_outage == "reject":
            self._withdraw(payment, outcome, op, deadline)
            raise ProviderUnavailable("The payment provider did not take the payment.")
        try:
            recorded = self._record(payment, outcome, op, promised=True)
        except Busy as error:
            _log_not_recorded(payment, outcome, error)
            if outcome.kind is OutcomeKind.NOT_EXECUTED or payment.status is Status.ACCEPTED:
                _raise_unpromised(error)
            # It may have been charged: a look-up follows when the lease ends, with or without a promise.
            return payment
        if recorded.status in UNSETTLED and not recorded.promised:
            # The lease has expired, and the background is ending the payment.
            raise KeyInFlight("The payment took too long to be sent.", payment_id=payment.id)
        return recorded

    def _adopted(self, payment: Payment, deadline: Deadline) -> Payment | None:
        """The payment with the charge that its key made before, by a row that is lost; None: there
        is none, and it may be sent.

        Raises Busy where that could not be proven in time, and KeyReused where the key's charge is
        another one; then nothing was sent.
        """
        loss = payment.loss
        if loss is None:
            return None
        found = self._lost_charge(payment, loss, deadline)
        if found is None:
            return None
        if (found.amount_minor, found.currency) != (payment.amount_minor, payment.currency):
            self._give_back(payment, "its key made another charge", deadline)
            raise KeyReused("This idempotency key was used before with another request.")
        adopted = self._store.adopt(payment, found.provider_ref, deadline, keep_lease=True)
        if adopted is None:
            self._give_back(payment, "its key's charge belongs to another payment", deadline)
            raise KeyInFlight("An earlier charge under this idempotency key is being examined.")
        log.error(
            "payment.found_in_books",
            extra={"payment_id": payment.id, "provider_ref": found.provider_ref, "adopted": True},
        )
        outcome = self._provider.look_up(
            charge_of(adopted), deadline.within(self._provider_timeout_s)
        )
        try:
            return self._record(adopted, outcome, "look_up", promised=True)
        except Busy as error:
            _log_not_recorded(adopted, outcome, error)
            return adopted

    def _lost_charge(self, payment: Payment, loss: Loss, deadline: Deadline) -> LostCharge | None:
        if loss.charge is not None:
            return loss.charge
        # Half of the time: the rest is for the call itself.
        within = deadline.within(min(self._provider_timeout_s, deadline.remaining_s() / 2))
        found = self._lost_charges.find(payment, loss, within)
        if found is None:
            return None
        return LostCharge(found.provider_ref, found.amount_minor, found.currency)

    def _give_back(self, payment: Payment, reason: str, deadline: Deadline) -> None:
        """End what was claimed and not sent; where that fails, the background does."""
        with contextlib.suppress(Busy):
            self._store.withdraw(payment, reason, deadline, spent=self._provider.two_phase)

    def payer_action(self, payment: Payment, deadline: Deadline) -> PayerAction | None:
        """The data that finishes 3-D Secure, read from the provider each time: secrets are not stored.

        Only for the payment's creator. None: no action is needed, or the provider gave no answer.
        """
        is_waiting = payment.status is Status.REQUIRES_ACTION
        if not is_waiting or payment.provider_ref is None:
            return None
        if payment.provider != self._provider.name:
            return None
        within = deadline.within(self._provider_timeout_s)
        return self._provider.look_up(charge_of(payment), within).payer_action

    def execute(self, payment: Payment, deadline: Deadline) -> tuple[Payment, Outcome]:
        """Send a leased, promised payment: the resulting row, and the last outcome.

        Used for queued payments. Never raises for a fault of provider or database: the
        reconciler finds an unwritten outcome again, from the same row.
        """
        try:
            payment, outcome, op = self._send(payment, deadline)
        except Busy as error:
            # Not confirmed, so no money can move: the row stays unchanged until the lease ends.
            log.warning(
                "payment.reference_not_noted", extra={"payment_id": payment.id, "error": error.code}
            )
            return payment, Outcome(OutcomeKind.NOT_EXECUTED, Stage.NOT_SENT, error="deadline")
        return self.record(payment, outcome, op=op), outcome

    def _send(self, payment: Payment, deadline: Deadline) -> tuple[Payment, Outcome, str]:
        """Prepare, record, confirm: the row as last written, the last outcome, and its operation.

        Raises Busy where the reference could not be recorded; the charge is then not confirmed.
        """
        deadline = deadline.within(self._provider_timeout_s)
        if payment.status is Status.ACCEPTED:
            prepared = self._prepare(payment, deadline)
            if prepared.kind is OutcomeKind.UNKNOWN:
                return self._note_doubt(payment, prepared, deadline), prepared, "prepare"
            if prepared.kind is not OutcomeKind.PENDING or deadline.remaining_s() < CONFIRM_NEEDS_S:
                return payment, prepared, "prepare"
            payment = self._note(payment, prepared, deadline)
            if payment.status is Status.ACCEPTED:
                lie = replace(prepared, provider_ref=None, error="mismatch")
                lie = replace(lie, kind=OutcomeKind.NOT_EXECUTED)
                return payment, lie, "prepare"
            if payment.is_expired:
                # It expired during prepare or the write: no money moves, and its look-up ends it.
                return payment, _TOO_LATE, "confirm"
        return payment, self._provider.confirm(charge_of(payment), deadline), "confirm"

    def _prepare(self, payment: Payment, deadline: Deadline) -> Outcome:
        """Prepare it: `pending`, refused, not executed, or `unknown` where money may have moved."""
        if payment.provider_ref is not None:
            # Prepared by an earlier try without time to confirm: a second prepare would make another charge.
            return Outcome(OutcomeKind.PENDING, Stage.NOT_SENT, provider_ref=payment.provider_ref)
        prepared = self._prepare_anew(payment, deadline)
        if prepared.kind is OutcomeKind.SUCCEEDED:
            # No money should have moved yet: only the provider's books can show whether it did.
            return replace(prepared, kind=OutcomeKind.UNKNOWN, error="mismatch")
        if prepared.kind is OutcomeKind.UNKNOWN and prepared.error not in _PREPARED_IN_DOUBT:
            # An unconfirmed charge moves no money: doubt about it is not a doubt about money.
            return replace(prepared, kind=OutcomeKind.NOT_EXECUTED)
        return prepared

    def _prepare_anew(self, payment: Payment, deadline: Deadline) -> Outcome:
        """Prepare under the key's first series, unless the provider knows it from another call.

        A freed key begins a later series. When all of its rows are lost, the next call begins at
        the first series again, and must find the charges made since.
        """
        charge = charge_of(payment)
        if self._provider.two_phase and payment.is_freed_keys_next:
            first_key = provider_key(str(payment.key_digest), 1)
            first = self._provider.prepare(replace(charge, provider_key=first_key), deadline)
            if not _is_of_another_call(first):
                return first
        return self._provider.prepare(charge, deadline)

    def _note(self, payment: Payment, prepared: Outcome, deadline: Deadline) -> Payment:
        noted = self._store.note_reference(payment, prepared, deadline)
        if noted is None:
            raise KeyInFlight("The payment is no longer this call's.", payment_id=payment.id)
        return noted

    def _note_doubt(self, payment: Payment, prepared: Outcome, deadline: Deadline) -> Payment:
        """Write `sending` first: from now on only look-ups settle the payment."""
        try:
            noted = self._note(payment, prepared, deadline)
            if noted.status is Status.ACCEPTED:
                prepared = replace(prepared, provider_ref=None)
                noted = self._note(payment, prepared, deadline)
            return noted
        except Busy as error:
            raise AcceptanceUnknown(
                "It is not known whether the payment was made. Send it again with the same key;"
                " do not pay elsewhere."
            ) from error

    def record(self, payment: Payment, outcome: Outcome, *, op: str) -> Payment:
        """Record a call's outcome; when the write fails, the row stays unchanged and due."""
        try:
            return self._record(payment, outcome, op, promised=False)
        except Busy as error:
            # Harmless: the reconciler looks the payment up again when the lease ends.
            _log_not_recorded(payment, outcome, error)
            return payment

    def _record(self, payment: Payment, outcome: Outcome, op: str, *, promised: bool) -> Payment:
        recorded = self._store.record(
            payment,
            outcome,
            op=op,
            due_in_s=next_look_up_s(payment.doubt_age_s),
            promised=promised,
        )
        _log(recorded, outcome, op)
        return recorded

    def _withdraw(self, payment: Payment, outcome: Outcome, op: str, deadline: Deadline) -> None:
        """Free the key for a repeat; when that fails, the background ends the payment."""
        with contextlib.suppress(Busy):
            self._store.withdraw(
                payment,
                "on_outage=reject",
                deadline,
                outcome=outcome,
                op=op,
                # In one_shot the key itself prevents a second charge for a lost row.
                spent=self._provider.two_phase,
            )


def charge_of(payment: Payment, *, may_send_again: bool = False) -> Charge:
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
        created_at=payment.books_from or payment.created_at,
        key_digest=payment.key_digest,
        may_send_again=may_send_again,
        is_older=payment.had_key_used,
        is_repeat=payment.was_sent,
    )


def _is_of_another_call(first: Outcome) -> bool:
    """Whether a prepare was answered about another payment under the same key."""
    is_anothers_charge = first.error == "mismatch" and first.provider_ref is None
    return first.error == KEY_USED or first.is_replay or is_anothers_charge


def _raise_unpromised(error: Busy) -> NoReturn:
    """Raise that the payment was not accepted; after an unanswered promise, that it may be."""
    if isinstance(error, DatabaseUnavailable) and error.in_doubt:
        raise AcceptanceUnknown(
            "It is not known whether the payment was accepted. Send it again with the same key;"
            " do not pay elsewhere."
        ) from error
    raise error


def _log_not_recorded(payment: Payment, outcome: Outcome, error: Busy) -> None:
    log.warning(
        "payment.outcome_not_recorded",
        extra={"payment_id": payment.id, "outcome": outcome.kind, "error": error.code},
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
