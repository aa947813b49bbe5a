"""The adapters there are, by the name that HOLDFAST_PROVIDER and each payment's row call them."""

from __future__ import annotations

from typing import Literal

from service.providers.later import LaterProvider
from service.providers.stripe import StripeProvider
from service.providers.stripe_charges import StripeChargesProvider
from service.providers.transport import Transport


def adapter(
    name: str, transport: Transport, *, api_key: str, flow: Literal["two_phase", "one_shot"]
) -> LaterProvider:
    """The adapter of that name; `flow` is for those that have the choice."""
    if name == StripeChargesProvider.name:
        return StripeChargesProvider(transport, api_key=api_key)
    if name == StripeProvider.name:
        return StripeProvider(transport, api_key=api_key, flow=flow)
    raise ValueError(f"There is no adapter called {name}.")
