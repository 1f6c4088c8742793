"""Money: integer minor units with the exponent of ISO 4217. Decimal at the edge, never float."""

from __future__ import annotations

from decimal import Context, Decimal, DecimalException, Inexact, InvalidOperation

from schemas.errors import InvalidRecord

# ISO 4217 active codes, by number of decimals (source: ISO 4217:2015 list one, as amended).
_TWO = """
AED AFN ALL AMD AOA ARS AUD AWG AZN BAM BBD BDT BGN BMD BND BOB BRL BSD BTN BWP BYN BZD CAD CDF CHF CNY COP CRC CUP
CVE CZK DKK DOP DZD EGP ERN ETB EUR FJD FKP GBP GEL GHS GIP GMD GTQ GYD HKD HNL HTG HUF IDR ILS INR IRR JMD KES KGS
KHR KPW KYD KZT LAK LBP LKR LRD LSL MAD MDL MGA MKD MMK MNT MOP MRU MUR MVR MWK MXN MYR MZN NAD NGN NIO NOK NPR NZD
PAB PEN PGK PHP PKR PLN QAR RON RSD RUB SAR SBD SCR SDG SEK SGD SHP SLE SOS SRD SSP STN SVC SYP SZL THB TJS TMT TOP
TRY TTD TWD TZS UAH USD UYU UZS VED VES WST XCD XCG YER ZAR ZMW ZWG
"""
_NONE = "BIF CLP DJF GNF ISK JPY KMF KRW PYG RWF UGX UYI VND VUV XAF XOF XPF"
_THREE = "BHD IQD JOD KWD LYD OMR TND"
_FOUR = "CLF UYW"

EXPONENTS: dict[str, int] = (
    dict.fromkeys(_TWO.split(), 2) | dict.fromkeys(_NONE.split(), 0) | dict.fromkeys(_THREE.split(), 3) | dict.fromkeys(_FOUR.split(), 4)
)
_EXACT = Context(prec=64, Emin=-64, Emax=64, traps=[Inexact, InvalidOperation])
"""What it cannot hold, by its digits or by its size, is an error."""


def to_minor(amount: Decimal, currency: str, field: str = "amount") -> int:
    """Minor units of a decimal amount of major units; InvalidRecord if the currency is unknown or digits would be lost."""
    exponent = EXPONENTS.get(currency)
    if exponent is None:
        raise InvalidRecord("currency", f"unknown ISO 4217 currency {currency!r}", code="unknown_currency")
    if not amount.is_finite():
        raise InvalidRecord(field, f"{amount} is not an amount", code="invalid_amount")
    try:
        minor = amount.scaleb(exponent, _EXACT)
    except DecimalException:
        raise InvalidRecord(field, f"{amount} has more digits than an amount of {currency}", code="invalid_amount") from None
    if minor != minor.to_integral_value():
        raise InvalidRecord(field, f"{amount} has more decimals than {currency} has ({exponent})", code="invalid_amount")
    return int(minor)


def to_major(amount_minor: int, currency: str) -> Decimal:
    """The decimal amount of major units, for people: `to_major(1234, "EUR") == Decimal("12.34")`."""
    return Decimal(amount_minor).scaleb(-EXPONENTS[currency])
