"""Stripe's error object, for every refusal."""

from __future__ import annotations

from typing import Any


class StripeError(Exception):
    """A refusal with Stripe's HTTP status and error object."""

    def __init__(self, status: int, error_type: str, message: str, **fields: Any) -> None:
        super().__init__(message)
        self.status = status
        self.body = {"error": {"type": error_type, "message": message, **fields}}


def invalid(message: str, *, status: int = 400, **fields: Any) -> StripeError:
    """The request is wrong: a parameter, or the state of the object it names."""
    return StripeError(status, "invalid_request_error", message, **fields)


def missing(kind: str, object_id: str, *, param: str, status: int = 404) -> StripeError:
    """The object does not exist."""
    return invalid(
        f"No such {kind}: '{object_id}'", status=status, code="resource_missing", param=param
    )


def unexpected_state(message: str, payment_intent: dict[str, Any]) -> StripeError:
    """The PaymentIntent exists, but its state forbids the operation."""
    return invalid(message, code="payment_intent_unexpected_state", payment_intent=payment_intent)


def internal() -> StripeError:
    """An internal failure of the provider."""
    return StripeError(500, "api_error", "An unknown error occurred.")
