"""What the service says when it cannot serve: come back (Busy) or never again (Rejected).

Every error carries the `code` and the `stage` of the REST contract. HTTP statuses are given in
`web/problems.py` and nowhere else.
"""

from __future__ import annotations

from typing import ClassVar


class HoldfastError(Exception):
    """Base of all errors that a caller may see; `detail` is safe to show (no secrets, no input)."""

    code: ClassVar[str] = "internal_error"

    def __init__(self, detail: str, *, payment_id: str | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.payment_id = payment_id


class Busy(HoldfastError):
    """Nothing was sent to the provider and nothing is owed: the same key again is safe."""

    def __init__(
        self, detail: str, *, retry_after_s: float = 1.0, payment_id: str | None = None
    ) -> None:
        super().__init__(detail, payment_id=payment_id)
        self.retry_after_s = retry_after_s


class Rejected(HoldfastError):
    """The request itself is wrong: sending it again unchanged never helps."""


# --- Busy: the database ---------------------------------------------------------------------


class PoolTimeout(Busy):
    """No database connection came free in time (connection pool exhausted)."""

    code = "db_pool_exhausted"


class PoolRefused(PoolTimeout):
    """More callers wait for a database connection than can be served in time; refused at once."""


class DatabaseUnavailable(Busy):
    """The database does not answer, or a commit is in doubt: the provider was not called."""

    code = "database_unavailable"

    def __init__(self, detail: str, *, in_doubt: bool = False) -> None:
        super().__init__(detail)
        # The statement was sent and not answered: nobody can say whether it was carried out.
        self.in_doubt = in_doubt


class AcceptanceUnknown(Busy):
    """The commit of our promise is in doubt: only the same key tells whether it was accepted."""

    code = "acceptance_unknown"


# --- Busy: the provider and ourselves -------------------------------------------------------


class ProviderUnavailable(Busy):
    """The provider is known to be down and the caller asked to be told so (`on_outage=reject`)."""

    code = "provider_unavailable"


class BulkheadFull(Busy):
    """As many threads as may wait for the provider already do."""

    code = "bulkhead_full"


class DeadlineExceeded(Busy):
    """The request's time was spent before any work was begun."""

    code = "deadline_exceeded"


class RateLimited(Busy):
    """The caller's key has used up its rate; nothing was read or written."""

    code = "rate_limited"


class KeyInFlight(Busy):
    """Another call with the same idempotency key is being served right now."""

    code = "idempotency_key_in_flight"


# --- Rejected -------------------------------------------------------------------------------


class Unauthenticated(Rejected):
    """No API key, or one that is unknown, revoked or expired."""

    code = "unauthenticated"


class Forbidden(Rejected):
    """The API key is good, but its scopes or its mode do not allow this call."""

    code = "forbidden"


class NotFound(Rejected):
    """No such object for this merchant; another merchant's objects look the same."""

    code = "not_found"


class InvalidJson(Rejected):
    """The body is not one JSON object, is too deep, too large, or repeats a key."""

    code = "invalid_json"


class KeyMissing(Rejected):
    """The Idempotency-Key header is missing or not 1 to 255 visible ASCII characters."""

    code = "idempotency_key_missing"


class HeaderRepeated(Rejected):
    """A header that must stand once is repeated, or was joined with a comma on the way."""

    code = "header_repeated"


class ValidationFailed(Rejected):
    """A field is missing, unknown, of the wrong type or out of range; `fields` never holds values."""

    code = "validation_failed"

    def __init__(self, detail: str, *, fields: list[dict[str, str]] | None = None) -> None:
        super().__init__(detail)
        self.fields = fields or []


class AmountNotRepresentable(ValidationFailed):
    """The payment provider cannot take this amount in this currency; `fields` say what it would."""

    code = "amount_not_representable"

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"Refused: {field}.", fields=[{"field": field, "reason": reason}])


class CardDataRefused(ValidationFailed):
    """A field holds what looks like a card number; it was neither stored nor logged."""

    code = "card_data_refused"


class KeyReused(Rejected):
    """The idempotency key was used before with another body."""

    code = "idempotency_key_reused"


class WrongState(Rejected):
    """The payment's status does not allow this."""

    code = "wrong_state"


class PreflightRefused(Rejected):
    """A rehearsal may not begin now; `reasons` says why, each in words."""

    code = "preflight_refused"

    def __init__(self, reasons: list[str]) -> None:
        super().__init__(f"The rehearsal may not begin: {' '.join(reasons)}")
        self.reasons = reasons


class BodyTooLarge(Rejected):
    """The body is larger than we read."""

    code = "body_too_large"


class SignatureInvalid(Rejected):
    """A webhook's signature is missing, wrong, or too far from our clock."""

    code = "signature_invalid"
