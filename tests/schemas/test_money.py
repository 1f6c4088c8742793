"""Money is exact: what goes to minor units comes back, and digits are never lost in silence."""

from __future__ import annotations

import hashlib
import hmac
import uuid
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import InvalidRecord
from schemas.identity import NAMESPACE, decision_id, hash32, hash64, hold_id, keyed_token
from schemas.money import EXPONENTS, to_major, to_minor


@given(st.integers(-(10**15), 10**15), st.sampled_from(sorted(EXPONENTS)))
def test_minor_units_and_major_units_are_the_same_money(amount_minor: int, currency: str) -> None:
    assert to_minor(to_major(amount_minor, currency), currency) == amount_minor


@pytest.mark.parametrize(("amount", "currency", "minor"), [("12.34", "EUR", 1234), ("12", "JPY", 12), ("1.234", "KWD", 1234), ("0", "USD", 0)])
def test_exponents_are_those_of_iso_4217(amount: str, currency: str, minor: int) -> None:
    assert to_minor(Decimal(amount), currency) == minor


WRONG = [
    ("1.234", "EUR", "amount"),
    ("1.5", "JPY", "amount"),
    ("1", "ZZZ", "currency"),
    ("NaN", "EUR", "amount"),
    ("1e9999999", "EUR", "amount"),
    ("1e-999999999", "EUR", "amount"),
    ("1.00000000000000000000000000000001", "EUR", "amount"),
]


@pytest.mark.parametrize(("amount", "currency", "field"), WRONG)
def test_lost_digits_and_unknown_currencies_are_refused(amount: str, currency: str, field: str) -> None:
    with pytest.raises(InvalidRecord) as caught:
        to_minor(Decimal(amount), currency)
    assert caught.value.field == field


def test_ids_are_derived_and_never_change() -> None:
    assert decision_id("t1") == "dec_8fcbcee3aa6b50e09ab97eadc955ba1d"
    assert decision_id("t1") == decision_id("t1") != decision_id("t2")
    assert hold_id("t1")[4:] != decision_id("t1")[4:]
    assert hash64("t1") != 0 != hash32("t1")


@given(st.text(max_size=30))
def test_a_derived_id_is_a_uuid_of_version_5(text: str) -> None:
    assert decision_id(text) == f"dec_{uuid.uuid5(NAMESPACE, f'dec:{text}').hex}"


@given(st.binary(max_size=200), st.text(max_size=80).filter(lambda text: text.isprintable()))
def test_a_token_is_the_hmac_of_the_whole_value(key: bytes, value: str) -> None:
    assert keyed_token(key, "k1", "crd", value) == f"crd_k1_{hmac.new(key, f'crd{chr(31)}{value}'.encode(), hashlib.sha256).hexdigest()[:32]}"


@pytest.mark.parametrize(
    ("kind", "one", "other", "same"),
    [
        ("eml", "ana@example.com", " Ana@Example.COM", True),
        ("eml", "jos\u00e9@example.com", "JOSE\u0301@example.com", True),
        ("eml", "ana@example.com", "an.a@example.com", False),
        ("phn", "+4917012345", "+49 (170) 123-45", True),
        ("phn", "+4917012345", "004917012345", False),
        ("adr", "1 Main Street, Berlin", "1  main street,\nBERLIN ", True),
        ("adr", "1 Main Street", "11 Main Street", False),
        ("dev", "A-1", "a-1", False),
        ("phn", "-", ".", False),
        ("eml", " ", "  ", False),
    ],
)
def test_an_identity_is_one_however_people_spell_it(kind: str, one: str, other: str, same: bool) -> None:
    assert (keyed_token(b"k", "k1", kind, one) == keyed_token(b"k", "k1", kind, other)) is same


def test_a_token_needs_its_key() -> None:
    one, other = (keyed_token(key, "k1", "crd", "4111111111111111") for key in (b"a" * 32, b"b" * 32))
    assert one != other
    assert one.startswith("crd_k1_")
    assert "4111" not in one[:11]
