"""The rules of Stripe's documentation about currencies, enforced as the provider does.

Transcribed separately from https://docs.stripe.com/currencies: the service has another table, and
each exposes the mistakes of the other.
"""

from __future__ import annotations

from service.lab.sandbox.errors import invalid

SUPPORTED = frozenset(
    """
    usd aed afn all amd ang aoa ars aud awg azn bam bbd bdt bgn bif bmd bnd bob brl bsd bwp byn bzd
    cad cdf chf clp cny cop crc cve czk djf dkk dop dzd egp etb eur fjd fkp gbp gel gip gmd gnf gtq
    gyd hkd hnl htg huf idr ils inr isk jmd jpy kes kgs khr kmf krw kyd kzt lak lbp lkr lrd lsl mad
    mdl mga mkd mmk mnt mop mur mvr mwk mxn myr mzn nad ngn nio nok npr nzd pab pen pgk php pkr pln
    pyg qar ron rsd rub rwf sar sbd scr sek sgd shp sle sos srd std szl thb tjs top try ttd twd tzs
    uah ugx uyu uzs vnd vuv wst xaf xcd xcg xof xpf yer zar zmw bhd jod kwd omr tnd
    """.split()  # noqa: SIM905 - the list as it is published
)
# An amount must be divisible by this number.
_STEPS = {"isk": 100, "ugx": 100, **dict.fromkeys(("bhd", "jod", "kwd", "omr", "tnd"), 10)}
_DIGITS = {"idr": 12, "lbp": 11, "cop": 10, "huf": 10, "jpy": 10, "inr": 9}
# Stripe's minimum is in the settlement currency; the sandbox settles in the charged currency.
_MINIMUMS = {
    **dict.fromkeys(("usd", "ars", "aud", "brl", "cad", "chf", "cop", "eur", "idr", "ils"), 50),
    **dict.fromkeys(("inr", "jpy", "krw", "nzd", "php", "rub", "sgd", "zar"), 50),
    **dict.fromkeys(("aed", "myr", "pln", "ron"), 200),
    **dict.fromkeys(("nok", "sek"), 300),
    **dict.fromkeys(("mxn", "thb"), 1000),
    "czk": 1500,
    "dkk": 250,
    "gbp": 30,
    "hkd": 400,
    "huf": 17500,
}


def check_charge(amount: int, currency: str) -> None:
    """Refuse a charge as Stripe does: currency, divisibility, minimum and maximum."""
    if currency not in SUPPORTED:
        raise invalid(
            f"Invalid currency: {currency}. Stripe currently supports these currencies:"
            f" {', '.join(sorted(SUPPORTED))}",
            param="currency",
        )
    check_part(amount, currency, param="amount")
    least, most = _MINIMUMS.get(currency, 1), 10 ** _DIGITS.get(currency, 8) - 1
    if amount < least:
        raise invalid(
            f"Amount must be at least {least} {currency}", code="amount_too_small", param="amount"
        )
    if amount > most:
        raise invalid(
            f"Amount must be no more than {most}.", code="amount_too_large", param="amount"
        )


def check_part(amount: int, currency: str, *, param: str) -> None:
    """Refuse an amount that is finer than the currency's smallest unit."""
    step = _STEPS.get(currency, 1)
    if amount % step:
        raise invalid(
            f"Invalid amount: in {currency} it must be divisible by {step}.",
            code="parameter_invalid_integer",
            param=param,
        )
