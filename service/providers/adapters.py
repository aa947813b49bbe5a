"""All adapters, by the name that HOLDFAST_PROVIDER and each payment's row contain."""

from __future__ import annotations

from typing import Literal

from service.providers.http.transport import Transport
from service.providers.later import LaterProvider
from service.providers.stripe.charges import StripeChargesProvider
from service.providers.stripe.intents_adapter import StripeProvider


def adapter(
    name: str, transport: Transport, *, api_key: str, flow: Literal["two_phase", "one_shot"]
) -> LaterProvider:
    """The adapter of that name; only an adapter with two flows reads `flow`."""
    if name == StripeChargesProvider.name:
        return StripeChargesProvider(transport, api_key=api_key)
    if name == StripeProvider.name:
        return StripeProvider(transport, api_key=api_key, flow=flow)
    raise ValueError(f"There is no adapter called {name}.")
