"""The errors that callers may see: retry later (Busy) or never (Rejected).

Every error has the `code` and the `stage` of the REST contract. Only `web/http/problems.py` assigns
HTTP statuses.
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
    """No request reached the provider and no promise was made: the same key again is safe."""

    def __init__(
        self, detail: str, *, retry_after_s: float = 1.0, payment_id: str | None = None
    ) -> None:
        super().__init__(detail, payment_id=payment_id)
        self.retry_after_s = retry_after_s


class Rejected(HoldfastError):
    """The request itself is wrong: an unchanged retry never succeeds."""


# --- Busy: the database ---------------------------------------------------------------------


class PoolTimeout(Busy):
    """No database connection came free in time (connection pool exhausted)."""

    code = "db_pool_exhausted"


class PoolRefused(PoolTimeout):
    """Too many callers wait for a database connection to be served in time; refused at once."""


class DatabaseUnavailable(Busy):
    """The database does not answer, or a commit is in doubt: the provider was not called."""

    code = "database_unavailable"

    def __init__(self, detail: str, *, in_doubt: bool = False) -> None:
        super().__init__(detail)
        # The statement was sent without an answer: it is unknown whether the server executed it.
        self.in_doubt = in_doubt


class AcceptanceUnknown(Busy):
    """The commit of our promise is in doubt: only a retry with the same key finds out."""

    code = "acceptance_unknown"


# --- Busy: the provider and ourselves -------------------------------------------------------


class ProviderUnavailable(Busy):
    """The provider is known to be down and the caller chose `on_outage=reject`."""

    code = "provider_unavailable"


class BulkheadFull(Busy):
    """The maximum number of threads already wait for the provider."""

    code = "bulkhead_full"


class DeadlineExceeded(Busy):
    """The request's deadline passed before any work began."""

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
    """The API key is valid, but its scopes or its mode do not allow this call."""

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
    """A header that must appear once is repeated, or was joined with a comma by a proxy."""

    code = "header_repeated"


class ValidationFailed(Rejected):
    """A field is missing, unknown, of the wrong type or out of range; `fields` never holds values."""

    code = "validation_failed"

    def __init__(self, detail: str, *, fields: list[dict[str, str]] | None = None) -> None:
        super().__init__(detail)
        self.fields = fields or []


class AmountNotRepresentable(ValidationFailed):
    """The payment provider cannot take this amount in this currency; `fields` give the limits."""

    code = "amount_not_representable"

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"Refused: {field}.", fields=[{"field": field, "reason": reason}])


class CardDataRefused(ValidationFailed):
    """A field contains a probable card number; it was neither stored nor logged."""

    code = "card_data_refused"


class KeyReused(Rejected):
    """The idempotency key was used before with another body."""

    code = "idempotency_key_reused"


class WrongState(Rejected):
    """The payment's status does not allow this."""

    code = "wrong_state"


class PreflightRefused(Rejected):
    """A drill may not start now; `reasons` gives each reason as text."""

    code = "preflight_refused"

    def __init__(self, reasons: list[str]) -> None:
        super().__init__(f"The drill cannot start: {' '.join(reasons)}")
        self.reasons = reasons


class BodyTooLarge(Rejected):
    """The body exceeds the size limit."""

    code = "body_too_large"


class SignatureInvalid(Rejected):
    """A webhook's signature is missing, wrong, or too far from our clock."""

    code = "signature_invalid"
