"""Stripe's test payment methods: the result of charging each card."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from service.lab.sandbox.errors import missing


@dataclass(frozen=True, slots=True)
class Refusal:
    """A bank's refusal, in Stripe's words."""

    code: str
    message: str
    decline_code: str | None = None


@dataclass(frozen=True, slots=True)
class Card:
    """One test card."""

    brand: str
    last4: str
    refusal: Refusal | None = None
    # The payer must authenticate before the bank is asked.
    needs_action: bool = False
    # A refund stays pending until the bank has decided.
    refunds_wait: bool = False

    def as_payment_method(self, payment_method_id: str) -> dict[str, Any]:
        return {
            "id": payment_method_id,
            "object": "payment_method",
            "type": "card",
            "card": {"brand": self.brand, "last4": self.last4, "exp_month": 12, "exp_year": 2040},
            "livemode": False,
        }


_DECLINED = "Your card was declined."
_NO_FUNDS = Refusal("card_declined", "Your card has insufficient funds.", "insufficient_funds")
_REFUSALS = {
    "chargeDeclined": ("0002", Refusal("card_declined", _DECLINED, "generic_decline")),
    "chargeDeclinedInsufficientFunds": ("9995", _NO_FUNDS),
    "chargeDeclinedLostCard": ("9987", Refusal("card_declined", _DECLINED, "lost_card")),
    "chargeDeclinedStolenCard": ("9979", Refusal("card_declined", _DECLINED, "stolen_card")),
    "chargeDeclinedFraudulent": ("0019", Refusal("card_declined", _DECLINED, "fraudulent")),
    "chargeDeclinedVelocityLimitExceeded": (
        "6975",
        Refusal("card_declined", _DECLINED, "card_velocity_exceeded"),
    ),
    "chargeDeclinedExpiredCard": ("0069", Refusal("expired_card", "Your card has expired.")),
    "chargeDeclinedIncorrectCvc": (
        "0127",
        Refusal("incorrect_cvc", "Your card's security code is incorrect."),
    ),
    "chargeDeclinedProcessingError": (
        "0119",
        Refusal("processing_error", "An error occurred while processing your card."),
    ),
    "chargeCustomerFail": ("0341", Refusal("card_declined", _DECLINED, "generic_decline")),
}
_BRANDS = {
    "visa": ("visa", "4242"),
    "visa_debit": ("visa", "5556"),
    "mastercard": ("mastercard", "4444"),
    "mastercard_debit": ("mastercard", "8210"),
    "mastercard_prepaid": ("mastercard", "5100"),
    "amex": ("amex", "8431"),
    "discover": ("discover", "9424"),
    "diners": ("diners", "3237"),
    "jcb": ("jcb", "0505"),
    "unionpay": ("unionpay", "0005"),
}
_ACTIONS = {
    "authenticationRequired": ("3184", None),
    "threeDSecure2Required": ("3220", None),
    "threeDSecureRequired": ("3063", None),
    "authenticationRequiredChargeDeclinedInsufficientFunds": ("8260", _NO_FUNDS),
    "threeDSecureRequiredChargeDeclined": (
        "8341",
        Refusal("card_declined", _DECLINED, "generic_decline"),
    ),
}

_CARDS = (
    {f"pm_card_{name}": Card(brand, last4) for name, (brand, last4) in _BRANDS.items()}
    # Stripe has two names for most declines, with the brand and without.
    | {
        f"pm_card_{brand}{name}": Card("visa", last4, refusal=refusal)
        for name, (last4, refusal) in _REFUSALS.items()
        for brand in ("", "visa_")
    }
    | {
        f"pm_card_{name}": Card("visa", last4, refusal=refusal, needs_action=True)
        for name, (last4, refusal) in _ACTIONS.items()
    }
    | {"pm_card_pendingRefund": Card("visa", "7726", refunds_wait=True)}
)


def find(payment_method_id: str) -> Card:
    """The card behind a test payment method; StripeError `resource_missing` for any other name."""
    card = _CARDS.get(payment_method_id)
    if card is None:
        raise missing("PaymentMethod", payment_method_id, param="payment_method", status=400)
    return card
