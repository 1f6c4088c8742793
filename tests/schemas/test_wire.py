"""The wire format: what is written can be read, what cannot be read says why, and every schema fits all before it."""

from __future__ import annotations

import contextlib
import io
import ipaddress
import itertools
import json
from typing import Any

import fastavro
import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.hold import confirmed_event
from schemas import avro
from schemas.account import AccountState
from schemas.catalogue import VERSIONS
from schemas.decision import Contribution, Decision, Outcome, Reason, ReasonSource, Risk
from schemas.errors import InvalidRecord, UnknownSchema, UnreadableBytes
from schemas.freeze import frozen, incompatible
from schemas.hold import HoldEvent, HoldState
from schemas.identity import digest, request_digest
from schemas.topics import TOPICS
from schemas.transaction import (
    Attribute,
    BehaviouralSession,
    CheckResult,
    EntryMode,
    Transaction,
    TransactionKind,
    is_card_number,
    is_ip_address,
    sound,
)
from schemas.transcoder import GROWTH, WRONG, Plan, plan_of, to_avro, to_messagepack
from schemas.version import Version
from tests.models.decisions import a_decision

IDS = st.text("abcdefghij0123456789-_é", min_size=1, max_size=20)
MAYBE_ID = st.none() | IDS
TRANSACTIONS = st.builds(
    Transaction,
    transaction_id=IDS,
    kind=st.sampled_from(TransactionKind),
    at_ms=st.integers(0, 4_000_000_000_000),
    amount_minor=st.integers(0, 2**53),
    currency=st.sampled_from(["EUR", "JPY", "KWD"]),
    account_id=IDS,
    billing_amount_minor=st.none() | st.integers(0, 2**53),
    customer_id=MAYBE_ID,
    card_token=MAYBE_ID,
    mcc=st.none() | st.from_regex(r"^[0-9]{4}\Z"),
    country=st.none() | st.from_regex(r"^[A-Z]{2}\Z"),
    latitude=st.none() | st.floats(-90, 90),
    entry_mode=st.none() | st.sampled_from(EntryMode),
    cvv_result=st.none() | st.sampled_from(CheckResult),
    session=st.none() | st.builds(BehaviouralSession, keystroke_dwell_ms=st.none() | st.floats(0, 1e4)),
    attributes=st.lists(st.builds(Attribute, name=IDS, value=st.text(max_size=9)), max_size=3).map(tuple),
    partial_allowed=st.booleans(),
)


def a_transaction(**changes: object) -> Transaction:
    """A plain valid transaction."""
    plain: dict[str, object] = {
        "transaction_id": "t1",
        "kind": TransactionKind.ECOMMERCE,
        "at_ms": 1_700_000_000_000,
        "amount_minor": 1_234,
        "currency": "EUR",
        "account_id": "a1",
    }
    return Transaction(**(plain | changes))  # type: ignore[arg-type]


@given(TRANSACTIONS)
def test_what_is_written_is_read_back(txn: Transaction) -> None:
    assert avro.decode(Transaction, avro.encode(txn)) == txn


@given(TRANSACTIONS)
def test_each_byte_is_fastavros(txn: Transaction) -> None:
    out = io.BytesIO()
    fastavro.schemaless_writer(out, avro.avro_schema(Transaction), msgspec.to_builtins(txn))
    assert avro.body(txn) == out.getvalue()


@given(st.lists(TRANSACTIONS, max_size=20))
def test_many_are_written_as_one_by_one(txns: list[Transaction]) -> None:
    assert avro.bodies(txns) == [avro.body(txn) for txn in txns]


@given(TRANSACTIONS, st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=2), st.integers(0, 2))
def test_what_is_read_at_once_is_what_fastavro_reads_or_left_to_it(txn: Transaction, damage: list[tuple[int, int]], cut: int) -> None:
    content = bytearray(avro.body(txn))
    for at, byte in damage:
        content[at % len(content)] = byte
    del content[len(content) - cut :]
    at_once = avro._plain(Transaction, bytes(content))
    assert at_once is not None or damage or cut
    source, schema = io.BytesIO(content), avro._newest(Transaction)[1]
    try:
        values = fastavro.schemaless_reader(source, schema, None)
        read = repr(avro.checked(lambda: msgspec.convert(values, Transaction)))
    except Exception:  # noqa: BLE001 whatever it says of what does not decode
        read = ""
    assert at_once is None or repr(at_once) == read
    assert at_once is None or not source.read()


def test_bytes_that_hold_an_invalid_record_and_do_not_decode_are_unreadable_whatever_comes_first() -> None:
    content = avro.encode(a_transaction(account_id="zz")).replace(b"zz", b"\xffz")
    assert avro._plain(Transaction, content[5:]) is None
    for spoilt in (content, content.replace(b"ecommerce", b"unheardof")):
        with pytest.raises(UnreadableBytes):
            avro.decode(Transaction, spoilt)
    with pytest.raises(InvalidRecord, match="kind"):
        avro.decode(Transaction, avro.encode(a_transaction()).replace(b"ecommerce", b"unheardof"))


def written(schema: Any, value: Any) -> tuple[Plan, Any]:
    """The plan of this schema, and the value's bytes (uint8), which are fastavro's."""
    out = io.BytesIO()
    fastavro.schemaless_writer(out, schema, value)
    plan, packed = plan_of(schema), np.frombuffer(msgspec.msgpack.encode(value), np.uint8)
    room = np.empty(GROWTH * (packed.size + 1), np.uint8)
    content = room[: to_avro(plan.codes, packed, room)]
    assert content.tobytes() == out.getvalue()
    return plan, content


@given(st.integers(-(2**62), 2**62 - 1))
def test_a_long_of_any_size_is_fastavros(number: int) -> None:
    plan, content = written("long", number)
    size = to_messagepack(*plan, content, again := np.empty(64, np.uint8))
    assert msgspec.msgpack.decode(again[:size]) == number


@pytest.mark.parametrize("number", [-(2**63), 2**63 - 1, 2**62, -(2**62) - 1])
def test_a_long_of_64_bits_is_written_as_fastavro_writes_it_and_left_to_it_to_read(number: int) -> None:
    plan, content = written("long", number)
    assert to_messagepack(*plan, content, np.empty(64, np.uint8)) == WRONG


def test_a_number_too_large_for_a_long_is_no_record() -> None:
    with pytest.raises(TypeError, match="not of its own schema"):
        avro.body(msgspec.structs.replace(a_transaction(), amount_minor=2**63))
    with pytest.raises(TypeError, match="not of its own schema"):
        avro.bodies([a_transaction(), msgspec.structs.replace(a_transaction(), amount_minor=2**63)])


def test_numbers_of_numpy_are_written_as_pythons() -> None:
    said = a_transaction(amount_minor=np.int64(1_234), latitude=np.float64(52.5), longitude=-13)
    assert avro.body(said) == avro.body(a_transaction(latitude=52.5, longitude=-13.0))


@pytest.mark.parametrize("length", [0, 1, 15, 16, 31, 32, 63, 64, 255, 256, 8_191, 8_192, 65_535, 65_536])
def test_texts_and_arrays_of_any_length_are_fastavros(length: int) -> None:
    for schema, value in (("string", "é" * length), ("bytes", b"b" * length), ({"type": "array", "items": "long"}, [length] * length)):
        plan, content = written(schema, value)
        size = to_messagepack(*plan, content, again := np.empty(9 * content.size + 64, np.uint8))
        assert msgspec.msgpack.decode(again[:size]) == value


@given(TRANSACTIONS, st.integers(0, 1000), st.booleans())
def test_a_decision_is_fastavros_bytes_and_read_back(txn: Transaction, score: int, held: bool) -> None:
    decision = Decision(
        decision_id="dec_1",
        transaction_id=txn.transaction_id,
        account_id=txn.account_id,
        at_ms=txn.at_ms,
        decided_at_ms=5,
        outcome=Outcome.REVIEW,
        reasons=(Reason(code="x", source=ReasonSource.RULE, feature="f", value=1.5),),
        score=score,
        risk=Risk.HIGH,
        contributions=(Contribution(member="learned", weight=0.4, probability=None),),
        hold_id="hld_1" if held else None,
        held_minor=txn.amount_minor if held else 0,
        hold_currency=txn.currency if held else None,
        hold_expires_at_ms=9 if held else None,
        model_id="m",
        policy_id="p",
        catalogue_id="c",
        vector=b"\0" * 16,
        positions=(0, -1, 70_000),
        declined_positions=(),
        degradations=("memory",),
        source_topic="http",
        source_partition=-1,
        source_offset=-1,
        transaction=txn,
    )
    out = io.BytesIO()
    fastavro.schemaless_writer(out, avro.avro_schema(Decision), msgspec.to_builtins(decision, builtin_types=(bytes,)))
    message = avro.encode(decision)
    assert message == avro.frame(Decision) + out.getvalue()
    assert avro.decode(Decision, message) == decision


@given(st.binary(max_size=200))
def test_no_bytes_at_all_break_the_reader(value: bytes) -> None:
    framed = avro.frame(Transaction) + value
    for content in (value, framed):
        with contextlib.suppress(InvalidRecord):  # and nothing else
            assert isinstance(avro.decode(Transaction, content), Transaction)


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (None, UnreadableBytes),
        (b"", UnknownSchema),
        (b"\x01\0\0\0\x01", UnknownSchema),
        (b"\0\0\0\xff\xff1234", UnknownSchema),
        (avro.encode(a_transaction())[:-2], UnreadableBytes),
        (avro.encode(a_transaction()) + b"x", UnreadableBytes),
        (avro.frame(Decision) + avro.body(a_transaction()), UnknownSchema),
    ],
)
def test_unreadable_bytes_are_named(value: bytes | None, kind: type[InvalidRecord]) -> None:
    with pytest.raises(kind):
        avro.decode(Transaction, value)


REQUEST = {"transaction_id": "t", "kind": "atm", "at_ms": 1, "amount_minor": 5, "currency": "EUR", "account_id": "a"}


@pytest.mark.parametrize(
    ("changes", "field", "code"),
    [
        ({"kind": None}, "kind", "invalid_field"),
        ({"kind": "gift"}, "kind", "invalid_field"),
        ({"amount_minor": -5}, "amount_minor", "invalid_field"),
        ({"amount_minor": 5.5}, "amount_minor", "invalid_field"),
        ({"amount_minor": "5"}, "amount_minor", "invalid_field"),
        ({"currency": "eur"}, "currency", "invalid_field"),
        ({"transaction_id": ""}, "transaction_id", "invalid_field"),
        ({"mcc": "54"}, "mcc", "invalid_field"),
        ({"latitude": 91}, "latitude", "invalid_field"),
        ({"zork": 1}, "zork", "unknown_field"),
        ({"session": {"zork": 1}}, "session.zork", "unknown_field"),
    ],
)
def test_a_wrong_field_is_named(changes: dict[str, object], field: str, code: str) -> None:
    content = json.dumps(REQUEST | changes).encode()
    with pytest.raises(InvalidRecord) as caught:
        avro.checked(lambda: msgspec.json.decode(content, type=Transaction))
    assert (caught.value.field, caught.value.code) == (field, code)


@pytest.mark.parametrize("missing", REQUEST)
def test_a_missing_field_is_named(missing: str) -> None:
    content = json.dumps({k: v for k, v in REQUEST.items() if k != missing}).encode()
    with pytest.raises(InvalidRecord) as caught:
        avro.checked(lambda: msgspec.json.decode(content, type=Transaction))
    assert (caught.value.field, caught.value.code) == (missing, "missing_field")


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"currency": "ZZZ"}, "currency"),
        ({"billing_amount_minor": 1, "billing_currency": "QQQ"}, "billing_currency"),
        ({"billing_amount_minor": 1}, "billing_currency"),
        ({"amount_minor": 0, "billing_amount_minor": 1, "billing_currency": "USD"}, "billing_amount_minor"),
        ({"amount_minor": 1_000_000, "billing_amount_minor": 0, "billing_currency": "USD"}, "billing_amount_minor"),
        ({"latitude": 1.0}, "longitude"),
        ({"at_ms": 1_700_000_000_000 + 300_001}, "at_ms"),
    ],
)
def test_what_types_cannot_say_is_checked(changes: dict[str, object], field: str) -> None:
    with pytest.raises(InvalidRecord) as caught:
        sound(a_transaction(**changes), now_ms=1_700_000_000_000, future_ms_max=300_000)
    assert caught.value.field == field


@pytest.mark.parametrize("field", ["state", "hold_currency", "hold_expires_at_ms"])
def test_a_record_of_a_hold_that_cannot_be_is_not_read(field: str) -> None:
    decision = a_decision("t1", TransactionKind.ECOMMERCE, 100)
    record: HoldEvent | Decision = confirmed_event(decision, "decisions", 0, 1) if field == "state" else decision
    assert avro.decode(type(record), avro.encode(record)) == record
    msgspec.structs.force_setattr(record, field, HoldState.PROVISIONAL if field == "state" else None)
    with pytest.raises(InvalidRecord, match="hold") as refused:
        avro.decode(type(record), avro.encode(record))
    assert refused.value.field == ("state" if field == "state" else "hold_id")


def test_an_account_in_a_currency_that_nobody_has_is_not_read() -> None:
    state = AccountState(account_id="a1", currency="EUR", balance_minor=0, as_of_ms=1)
    msgspec.structs.force_setattr(state, "currency", "XXQ")
    with pytest.raises(InvalidRecord) as refused:
        avro.decode(AccountState, avro.encode(state))
    assert (refused.value.field, refused.value.code, refused.value.reason) == ("currency", "invalid_field", "unknown ISO 4217 currency 'XXQ'")


CARD_NUMBERS = ("4111111111111111", "4111 1111 1111 1111", "4111-1111-1111-1111", "378282246310005", "501800000009", "6304000000000000000")
TOKEN_FIELDS = [name for name in Transaction.__struct_fields__ if name.endswith("_token")]


@pytest.mark.parametrize("field", TOKEN_FIELDS)
@pytest.mark.parametrize("number", CARD_NUMBERS)
def test_a_card_number_is_no_token_and_is_not_repeated_in_the_refusal(field: str, number: str) -> None:
    with pytest.raises(InvalidRecord) as caught:
        sound(a_transaction(**{field: number}), now_ms=1_700_000_000_000, future_ms_max=0)
    assert (caught.value.field, caught.value.code) == (field, "card_number")
    assert number not in str(caught.value)


@pytest.mark.parametrize("token", ["4111111111111112", "41111111111", "crd_k1_4111111111111111", "0", "00000000000000000000", ":"])
def test_what_is_no_card_number_may_be_a_token(token: str) -> None:
    txn = a_transaction(card_token=token)
    assert sound(txn, now_ms=1_700_000_000_000, future_ms_max=0) is txn


@given(st.text("0123456789", min_size=11, max_size=18))
def test_of_ten_last_digits_one_makes_a_card_number(digits: str) -> None:
    assert [is_card_number(digits + last) for last in "0123456789"].count(True) == 1


OCTETS = st.lists(st.sampled_from(["0", "1", "01", "99", "199", "249", "255", "256", "a", ""]), min_size=3, max_size=5).map(".".join)
GROUPS = st.lists(st.sampled_from(["", "", "0", "1", "DB8", "ffff", "12345", "g"]), min_size=1, max_size=10).map(":".join)
ADDRESSES = OCTETS | GROUPS | st.ip_addresses().map(str) | st.tuples(GROUPS, OCTETS).map(":".join)


def test_of_all_ways_to_put_colons_between_groups_those_are_addresses_that_ipaddress_parses() -> None:
    for count in range(1, 10):
        for groups in itertools.product(("", "1", "ffff") if count < 8 else ("", "1"), repeat=count):
            text = ":".join(groups)
            try:
                ipaddress.ip_address(text)
            except ValueError:
                assert not is_ip_address(text), text
            else:
                assert is_ip_address(text), text


@given(ADDRESSES | ADDRESSES.map("{}\n".format) | st.sampled_from(["not an ip", "fe80::1%eth0", "١.1.1.1", "1.1.1.1/32"]))
def test_an_ip_address_is_what_ipaddress_parses(text: str) -> None:
    txn = a_transaction(ip=text)
    try:
        ipaddress.ip_address(text)
    except ValueError:
        with pytest.raises(InvalidRecord) as caught:
            sound(txn, now_ms=1_700_000_000_000, future_ms_max=0)
        assert caught.value.field == "ip"
    else:
        assert sound(txn, now_ms=1_700_000_000_000, future_ms_max=0) is txn


def test_the_far_future_begins_one_millisecond_after_the_limit() -> None:
    edge = a_transaction(at_ms=1_700_000_300_000)
    assert sound(edge, now_ms=1_700_000_000_000, future_ms_max=300_000) is edge


@pytest.mark.parametrize("topic", TOPICS, ids=lambda t: t.name)
def test_every_record_is_its_newest_committed_schema(topic: object) -> None:
    record = topic.record  # type: ignore[attr-defined]
    newest = [v for v in VERSIONS if v.record == record.__name__][-1]
    assert json.loads(newest.schema) == avro.avro_schema(record), "run `holdfast schemas freeze`"
    assert len(frozen(VERSIONS)) == len(VERSIONS)


@pytest.mark.parametrize("version", VERSIONS, ids=lambda v: f"{v.record}-{v.version}")
def test_every_schema_is_fully_compatible_with_every_version_before_it(version: Version) -> None:
    later = [v for v in VERSIONS if v.record == version.record and v.version >= version.version]
    for other in later:
        assert incompatible(json.loads(version.schema), json.loads(other.schema)) == []


def test_ids_are_given_once_and_never_again() -> None:
    assert [v.schema_id for v in VERSIONS] == list(range(1, len(VERSIONS) + 1))


FIELD = {"name": "a", "type": "long"}


def a_schema(*fields: dict[str, object]) -> dict[str, object]:
    """A record with these fields."""
    return {"type": "record", "name": "R", "fields": list(fields)}


@pytest.mark.parametrize(
    ("new", "faults"),
    [
        (a_schema(FIELD), 0),
        (a_schema(FIELD, {"name": "b", "type": "long", "default": 0}), 0),
        (a_schema(FIELD, {"name": "b", "type": "long"}), 1),
        (a_schema(), 1),
        (a_schema({"name": "a", "type": "string"}), 1),
        (a_schema({"name": "a", "type": ["null", "long"]}), 1),
    ],
)
def test_incompatible_changes_are_named(new: dict[str, object], faults: int) -> None:
    assert len(incompatible(a_schema(FIELD), new)) == faults


def test_fields_and_words_are_documented_in_the_schema() -> None:
    for topic in TOPICS:
        schema = avro.avro_schema(topic.record)
        assert schema["doc"]
        assert all(field["doc"] for field in schema["fields"]), topic.name


def test_a_repeat_of_what_an_earlier_release_decided_has_the_digest_that_it_had() -> None:
    older = fastavro.parse_schema(json.loads(next(v.schema for v in VERSIONS if (v.record, v.version) == ("Transaction", 2))))
    plain: dict[str, Any] = msgspec.to_builtins(txn := a_transaction())
    written = io.BytesIO()
    fastavro.schemaless_writer(written, older, {name: value for name, value in plain.items() if name in {f["name"] for f in older["fields"]}})
    assert request_digest(avro.body(txn)) == digest(written.getvalue())
    assert request_digest(avro.body(msgspec.structs.replace(txn, partial_allowed=True))) != digest(written.getvalue())
