"""Conversion between ISO 4217 minor units and a provider's own units. Pure.

Callers, the database and every `Outcome` use ISO 4217 minor units. An adapter converts where a
request leaves and where an answer arrives, with one table for both directions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


class NotRepresentable(ValueError):
    """The provider has no number for the amount; nothing was sent. The text contains no amount."""


@dataclass(frozen=True, slots=True)
class CurrencyUnits:
    """One currency at one provider; `least`, `most` and `step` are in ISO 4217 minor units."""

    # The provider's number is ours times this, divided by `divided_by`.
    times: int = 1
    divided_by: int = 1
    # Every amount must be divisible by this.
    step: int = 1
    least: int = 1
    most: int = 999_999_999_999


@dataclass(frozen=True, slots=True)
class Refused:
    """A field that the provider would refuse, and the values it accepts; shown to callers."""

    field: str
    reason: str


@dataclass(frozen=True, slots=True)
class AmountTable:
    """All currencies that a provider accepts; None: every currency of ISO 4217, unchanged."""

    units: Mapping[str, CurrencyUnits] | None = None

    def refusal(self, amount_minor: int, currency: str) -> Refused | None:
        """The reason why the provider cannot charge this amount; None: it can."""
        units = self._of(currency)
        if units is None:
            return Refused("currency", "is not taken by the payment provider")
        if amount_minor < units.least:
            return Refused("amount", f"the provider takes at least {units.least} in {currency}")
        if amount_minor > units.most:
            return Refused("amount", f"the provider takes at most {units.most} in {currency}")
        return self.part_refusal(amount_minor, currency)

    def part_refusal(self, amount_minor: int, currency: str) -> Refused | None:
        """The reason why the provider cannot capture or refund this part of a charge; None: it can."""
        units = self._of(currency)
        if units is None or amount_minor % units.step == 0:
            return None
        below = amount_minor - amount_minor % units.step
        accepted = f"{below} or {below + units.step}" if below else f"{units.step}"
        reason = f"must be divisible by {units.step} in {currency}: {accepted} would be accepted"
        return Refused("amount", reason)

    def currencies_without(self, amount_minor: int | None) -> list[str]:
        """The currencies in which the provider cannot express this amount, for a WHERE of SQL."""
        if amount_minor is None or self.units is None:
            return []
        return [code for code, units in self.units.items() if amount_minor % units.step]

    def to_provider(self, amount_minor: int, currency: str) -> int:
        """Our amount in the provider's units; raises NotRepresentable."""
        units = self._of(currency)
        if units is None or amount_minor % units.step:
            raise NotRepresentable(f"an amount in {currency} that the provider cannot take")
        return amount_minor * units.times // units.divided_by

    def from_provider(self, amount: int, currency: str) -> int | None:
        """The provider's amount in ISO 4217 minor units; None: a fraction of one."""
        # A charge in a currency that the table lacks was not made by us: its number stays as it is.
        units = self._of(currency) or CurrencyUnits()
        whole, rest = divmod(amount * units.divided_by, units.times)
        return whole if rest == 0 else None

    def _of(self, currency: str) -> CurrencyUnits | None:
        return CurrencyUnits() if self.units is None else self.units.get(currency)


# A provider that uses ISO 4217 minor units and has no bounds.
ISO_4217 = AmountTable()
