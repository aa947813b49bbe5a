"""Stripe's currencies: their minor units, and the smallest and largest charge.

Source: https://docs.stripe.com/currencies ("Supported presentment currencies", "Zero-decimal
currencies", "Special cases", "Minimum and maximum charge amounts"), as published in July 2026; the
rule for three-decimal currencies as published until 2023, since when the page only says that they
are supported; the maximum of eight digits from
https://docs.stripe.com/api/payment_intents/create (`amount`), its exceptions from the page above.

The table has two limits. Stripe's minimum is that of the account's settlement currency, after
conversion; the table has the minimum of the charge's own currency. The currencies that an account
may use depend on its country: Stripe refuses the others itself.
"""

from __future__ import annotations

from service.providers.amounts import AmountTable, CurrencyUnits


def _codes(text: str) -> list[str]:
    return text.split()


# In alphabetical order; without currencies that ISO 4217 has withdrawn (ang, bgn, std).
_TWO_DECIMALS = _codes("""
    aed afn all amd aoa ars aud awg azn bam bbd bdt bmd bnd bob brl bsd bwp byn bzd cad cdf chf cny
    cop crc cve czk dkk dop dzd egp etb eur fjd fkp gbp gel gip gmd gtq gyd hkd hnl htg huf idr ils
    inr jmd kes kgs khr kyd kzt lak lbp lkr lrd lsl mad mdl mkd mmk mnt mop mur mvr mwk mxn myr mzn
    nad ngn nio nok npr nzd pab pen pgk php pkr pln qar ron rsd rub sar sbd scr sek sgd shp sle sos
    srd szl thb tjs top try ttd twd tzs uah usd uyu uzs wst xcd xcg yer zar zmw
""")
_ZERO_DECIMALS = _codes("bif clp djf gnf jpy kmf krw pyg rwf vnd vuv xaf xof xpf")
# ISO 4217 has no decimals for these; Stripe requires two, always 00.
_ZERO_DECIMALS_SAID_WITH_TWO = ("isk", "ugx")
# ISO 4217 has two decimals for it (an ariary has five iraimbilanja); Stripe has none.
_TWO_DECIMALS_SAID_WITH_NONE = ("mga",)
# The last digit has to be 0.
_THREE_DECIMALS = ("bhd", "jod", "kwd", "omr", "tnd")

# In minor units of ISO 4217, like all numbers below.
_LEAST = {
    **dict.fromkeys(_codes("usd ars aud brl cad chf cop eur idr ils inr jpy krw"), 50),
    **dict.fromkeys(_codes("nzd php rub sgd zar"), 50),
    **dict.fromkeys(_codes("aed myr pln ron"), 200),
    **dict.fromkeys(_codes("nok sek"), 300),
    **dict.fromkeys(_codes("mxn thb"), 1000),
    "czk": 1500,
    "dkk": 250,
    "gbp": 30,
    "hkd": 400,
    "huf": 17_500,
}
_MOST_BY_DIGITS = {"idr": 12, "lbp": 11, "cop": 10, "huf": 10, "jpy": 10, "inr": 9}
_DIGITS = 8


def _units(code: str, *, times: int = 1, divided_by: int = 1, step: int = 1) -> CurrencyUnits:
    most_of_stripe: int = 10 ** _MOST_BY_DIGITS.get(code, _DIGITS) - 1
    most = most_of_stripe * divided_by // times
    return CurrencyUnits(
        times=times,
        divided_by=divided_by,
        step=step,
        least=_LEAST.get(code, step),
        most=most - most % step,
    )


STRIPE_AMOUNTS = AmountTable(
    {
        **{code: _units(code) for code in (*_TWO_DECIMALS, *_ZERO_DECIMALS)},
        **{code: _units(code, times=100) for code in _ZERO_DECIMALS_SAID_WITH_TWO},
        **{code: _units(code, divided_by=100, step=100) for code in _TWO_DECIMALS_SAID_WITH_NONE},
        **{code: _units(code, step=10) for code in _THREE_DECIMALS},
    }
)
