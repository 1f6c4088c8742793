"""What transactions say, read by compiled code: the facts, measures and tokens that plain Python finds."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest
from facts_oracle import facts_said, measures_said
from hypothesis import given, settings
from hypothesis import strategies as st

from features import resp, said
from features.catalogue import CATALOGUE
from features.fact import DECLINED, FACTS, KIND_CODES, LEAVES, OWN, SAYING, declined_facts, facts_in, facts_of, measures_of, owns_of
from features.memory import tokens_of
from schemas.avro import messagepack_of
from schemas.identity import hash32
from schemas.record import EPOCH_MS_MAX
from schemas.transaction import Attribute, BehaviouralSession, EntryMode, Fingerprint, Transaction, TransactionKind

texts = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=64)
tokens = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=128)
countries = st.text("ABCXYZ", min_size=2, max_size=2)
amounts = st.sampled_from([0, 1, 127, 128, 2**31, 2**32, 2**40 - 1, 2**40, 2**53]) | st.integers(0, 2**53)
floats = st.floats() | st.sampled_from([0, 1, -1, 0.04, 0.05, 6_553.5, 6_553.55, 1e300]) | st.integers(-(2**40), 2**60)


def perhaps(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """One of them, or nothing."""
    return st.none() | values


sessions = st.builds(
    BehaviouralSession,
    **{name: perhaps(floats) for name in BehaviouralSession.__struct_fields__},  # type: ignore[arg-type]
)
prints = st.builds(
    Fingerprint,
    **{name: perhaps(st.booleans() if name == "emulator" else tokens) for name in Fingerprint.__struct_fields__},  # type: ignore[arg-type]
)
transactions = st.builds(
    Transaction,
    transaction_id=texts,
    kind=st.sampled_from(TransactionKind),
    at_ms=st.sampled_from([0, 2**32 - 1, 2**32, 2**42 - 1, 2**42, EPOCH_MS_MAX]) | st.integers(0, EPOCH_MS_MAX),
    amount_minor=amounts,
    currency=st.just("EUR"),
    account_id=texts,
    billing_amount_minor=perhaps(amounts),
    billing_currency=perhaps(st.just("USD")),
    customer_id=perhaps(texts),
    card_token=perhaps(tokens),
    card_bin=perhaps(st.just("411111")),
    card_country=perhaps(countries),
    device_token=perhaps(tokens),
    email_token=perhaps(tokens),
    phone_token=perhaps(tokens),
    address_token=perhaps(tokens),
    counterparty_account_id=perhaps(texts),
    merchant_id=perhaps(texts),
    mcc=perhaps(st.from_regex("[0-9]{4}", fullmatch=True)),
    terminal_id=perhaps(texts),
    country=perhaps(countries),
    latitude=perhaps(st.floats(-90, 90) | st.sampled_from([-90, 0, 90])),
    longitude=perhaps(st.floats(-180, 180) | st.sampled_from([-180, 0, 180])),
    ip=perhaps(st.just("10.0.0.1")),
    ip_country=perhaps(countries),
    ip_proxy=perhaps(st.booleans()),
    entry_mode=perhaps(st.sampled_from(EntryMode)),
    session=perhaps(sessions),
    fingerprint=perhaps(prints),
    attributes=st.lists(st.builds(Attribute, name=texts, value=st.text(st.characters(exclude_categories=("Cs",)), max_size=256)), max_size=20).map(
        tuple
    ),
    partial_allowed=st.booleans(),
    step_up_of=perhaps(texts),
)


@settings(max_examples=400, deadline=None)
@given(st.lists(transactions, min_size=1, max_size=20))
def test_facts_and_measures_are_those_that_plain_python_finds(txns: list[Transaction]) -> None:
    owns = owns_of(txns).tobytes()
    for number, txn in enumerate(txns):
        own = owns[number * OWN.size : (number + 1) * OWN.size]
        assert facts_in(own) == facts_of(txn) == facts_said(txn)
        assert own == OWN.pack(*facts_said(txn), *measures_said(txn))
        assert np.array(measures_of(txn)).tobytes() == np.array(measures_said(txn)).tobytes()


@settings(max_examples=200, deadline=None)
@given(st.lists(transactions, min_size=1, max_size=20), st.booleans())
def test_tokens_are_those_of_its_entities_and_a_decline_is_of_the_logs_it_is_in(txns: list[Transaction], declined: bool) -> None:
    fields = (*CATALOGUE.log_fields, *CATALOGUE.profile_fields, *CATALOGUE.tally_fields)
    appends = np.array([not entity.log_of for entity in CATALOGUE.log_entities], np.uint8)
    content, owns, spans = messagepack_of(txns), np.empty(len(txns) * OWN.size, np.uint8), np.empty((len(txns), len(fields), 2), np.int64)
    leaves = np.array([LEAVES[field] for field in fields])
    resp.spoken(*SAYING, np.frombuffer(content, np.uint8), leaves, owns, OWN.size, DECLINED if declined else 0, appends, spans)
    for number, txn in enumerate(txns):
        found = [None if size < 0 else content[begin : begin + size].decode() for begin, size in spans[number].tolist()]
        asked = [not declined or (memory < len(appends) and bool(appends[memory])) for memory in range(len(fields))]
        assert found == [token if asks else None for token, asks in zip(tokens_of(CATALOGUE)(txn), asked, strict=True)]
        facts = declined_facts(facts_said(txn)) if declined else facts_said(txn)
        assert facts_in(owns[number * OWN.size : (number + 1) * OWN.size].tobytes()) == facts


def test_every_kind_has_its_code_and_what_is_given_in_no_way_is_nothing() -> None:
    bare: dict[str, Any] = {"transaction_id": "t", "at_ms": 1, "amount_minor": 1, "currency": "EUR", "account_id": "a"}
    for kind in TransactionKind:
        facts = dict(zip((fact.name for fact in FACTS), facts_of(Transaction(kind=kind, **bare)), strict=True))
        assert facts.pop("kind") == KIND_CODES[kind]
        assert {name for name, value in facts.items() if value} == {"hash", "at_ms", "amount_minor", "account"}


@pytest.mark.parametrize("size", [1, 7, 8, 9, 63, 64, 127, 128, 129, 255, 256, 257, 512])
def test_the_hash_of_a_text_is_hashlibs(size: int) -> None:
    state, block = np.empty(8, np.int64), np.empty(16, np.int64)
    for salt in range(50):
        text = bytes((7 * place + salt) % 256 for place in range(size))
        wanted = int.from_bytes(hashlib.blake2b(text, digest_size=4).digest(), "little")
        assert said.hash_of(np.frombuffer(b"xx" + text, np.uint8), 2, size, state, block) == wanted
    assert said.hash_of(np.frombuffer(b"e-mail", np.uint8), 0, 6, state, block) == hash32("e-mail")
