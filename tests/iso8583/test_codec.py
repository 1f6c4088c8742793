"""The codec: what is written is read again in every dialect, as somebody else's library writes and reads it; nonsense is named, not raised."""

from __future__ import annotations

import contextlib
import string
from pathlib import Path

import iso8583
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.errors import SettingsError
from streams.authorize.codec import BadMessage, Codec, Message, Unreadable
from streams.authorize.dialect import FOLDER, Dialect, Element, dialect_of
from tests.iso8583.pyiso8583 import spec_of

DIALECTS = {path.stem: dialect_of(path.stem) for path in sorted(FOLDER.glob("*.toml"))}
CODECS = {name: Codec(dialect) for name, dialect in DIALECTS.items()}
PRINTABLE = string.digits + string.ascii_letters + string.punctuation + " "
SIZE_MAX = 60
"""No longer than this, so that examples stay small."""


def contents(element: Element, packed: bool) -> st.SearchStrategy[str]:
    """Whatever an element may hold."""
    low, high = (0, min(element.size_max, SIZE_MAX)) if element.length_digits else (element.size_max, element.size_max)
    if element.kind == "b":
        return st.binary(min_size=low, max_size=high).map(lambda raw: raw.hex().upper())
    if element.kind == "x+n":
        return st.tuples(st.sampled_from("CD"), st.text(string.digits, min_size=low, max_size=high)).map("".join)
    letters = {"n": string.digits, "z": string.digits + ("D" if packed else "=D")}.get(element.kind, PRINTABLE)
    return st.text(letters, min_size=low, max_size=high)


def messages(dialect: Dialect, elements: dict[int, Element]) -> st.SearchStrategy[Message]:
    """Messages of a dialect with any of these elements."""
    packed = dialect.numeric == "packed"
    fields = st.fixed_dictionaries({}, optional={number: contents(element, packed) for number, element in elements.items()})
    mti = st.from_regex(r"\A[01][1-8][0-9][0-5]\Z")
    return st.builds(lambda kind, some: Message(b"\x60" * dialect.prefix_bytes, kind, some), mti, fields)


@pytest.mark.parametrize("name", DIALECTS)
@given(st.data())
@settings(deadline=None, max_examples=60)
def test_what_is_written_is_read_again(name: str, data: st.DataObject) -> None:
    message = data.draw(messages(DIALECTS[name], DIALECTS[name].fields))
    assert CODECS[name].decode(CODECS[name].encode(message)) == message


@pytest.mark.parametrize("name", DIALECTS)
@given(st.data())
@settings(deadline=None, max_examples=60)
def test_somebody_elses_library_writes_and_reads_the_same_bytes(name: str, data: st.DataObject) -> None:
    dialect, spec = DIALECTS[name], spec_of(DIALECTS[name])
    expressible = {n: e for n, e in dialect.fields.items() if not (e.kind == "x+n" and dialect.numeric == "packed")}
    message = data.draw(messages(dialect, expressible))
    theirs, _ = iso8583.encode({"t": message.mti} | {str(n): v for n, v in message.fields.items()}, spec)
    assert CODECS[name].encode(message) == bytes(theirs)
    read, _ = iso8583.decode(theirs, spec)
    assert {int(n): v for n, v in read.items() if n.isdigit() and n != "1"} == CODECS[name].decode(bytes(theirs)).fields


@pytest.mark.parametrize("name", DIALECTS)
@given(st.data(), st.binary(max_size=200))
@settings(deadline=None, max_examples=150)
def test_bytes_that_are_no_message_are_refused_by_name(name: str, data: st.DataObject, noise: bytes) -> None:
    codec = CODECS[name]
    whole = codec.encode(data.draw(messages(DIALECTS[name], {n: DIALECTS[name].fields[n] for n in (2, 4, 35, 43, 48, 52, 90)})))
    at = data.draw(st.integers(0, len(whole)))
    for raw in (noise, whole[:at], whole[:at] + noise + whole[at:], noise + whole):
        with contextlib.suppress(BadMessage, Unreadable):
            codec.decode(raw)


def test_what_could_be_read_of_a_broken_message_is_kept_and_the_element_named() -> None:
    codec = CODECS["1987-ascii"]
    whole = codec.encode(Message(b"", "0100", {3: "000000", 4: "000000001000", 11: "000001", 49: "978"}))
    with pytest.raises(BadMessage) as caught:
        codec.decode(whole[:-2])
    assert caught.value.field == "element 49"
    assert caught.value.message == Message(b"", "0100", {3: "000000", 4: "000000001000", 11: "000001"})


def test_a_broken_element_is_not_quoted() -> None:
    codec = CODECS["1987-ascii"]
    raw = codec.encode(Message(b"", "0100", {2: "4111111111111111"})).replace(b"4111111111111111", b"411111111111111x")
    with pytest.raises(BadMessage) as caught:
        codec.decode(raw)
    assert "4111" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "raw"),
    [
        ("1987-ascii", b"0800\x82\x20\x00\x00\x00\x00\x00\x00\x04\x00\x00\x00\x00\x00\x00\x000101120000000077301"),
        ("1987-binary", bytes.fromhex("0800 8220000000000000 0400000000000000 0101120000 000077 0301")),
        ("1987-ebcdic", bytes.fromhex("0800 8220000000000000 0400000000000000 0101120000 000077 0301")),
    ],
)
def test_an_echo_by_hand(name: str, raw: bytes) -> None:
    assert CODECS[name].decode(raw) == Message(b"", "0800", {7: "0101120000", 11: "000077", 70: "301"})
    assert CODECS[name].encode(CODECS[name].decode(raw)) == raw


def test_1993_has_its_own_elements_where_1987_has_others() -> None:
    raws = {57: b"110", 58: b"06123456", 71: b"00000002", 72: b"005SOME ", 82: b"0000000001", 90: b"0000000003", 91: b"276", 92: b"250"}
    raws |= {93: b"0512345", 94: b"0554321", 95: b"03REF", 96: b"002\xab\xcd", 99: b"06123456", 105: b"0" * 16, 107: b"0" * 10, 109: b"02XY"}
    for number, raw in (raws | {124: b"003ABC", 125: b"003DEF"}).items():
        bitmap = (1 << (128 - number) | (1 << 127 if number > 64 else 0)).to_bytes(16)[: 16 if number > 64 else 8]
        whole = b"1100" + bitmap + raw
        assert CODECS["1993-ascii"].encode(CODECS["1993-ascii"].decode(whole)) == whole, number


def test_a_part_that_is_a_whole_element_needs_no_quotes(tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text('extends = "1987-ascii"\n[map]\nmcc = 26\n')
    assert dialect_of(str(tmp_path / "own.toml")).map.mcc == (26, None, None)


def test_a_banks_own_dialect_gives_only_the_rows_that_differ(tmp_path: Path) -> None:
    own = tmp_path / "bank.toml"
    own.write_text('extends = "1987-binary"\nbitmap = "hex"\nprefix_bytes = 5\n[fields]\n48 = "ans ..99"\n[map]\nmcc = "26"\n')
    dialect = dialect_of(str(own))
    assert (dialect.bitmap, dialect.numeric, dialect.fields[48], dialect.map.mcc and dialect.map.mcc.number) == ("hex", "packed", ("ans", 2, 99), 26)
    codec = Codec(dialect)
    message = Message(b"TPDU5", "0100", {11: "000001", 48: "more"})
    raw = codec.encode(message)
    assert raw.startswith(b"TPDU5\x01\x000020000000010000\x00\x00\x01")
    assert codec.decode(raw) == message


@pytest.mark.parametrize(
    ("base", "notation", "raw"),
    [
        ("1987-ascii", "ans ......9999", b"000003ABC"),
        ("1987-ascii", "ans .9", b"3ABC"),
        ("1987-binary", "ans ......9999", b"\x00\x00\x03ABC"),
        ("1987-ebcdic", "ans ....9999", b"\x00\x03\xc1\xc2\xc3"),
    ],
)
def test_a_banks_own_element_may_have_a_longer_or_shorter_length(base: str, notation: str, raw: bytes, tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text(f'extends = "{base}"\n[fields]\n127 = "{notation}"\n')
    codec, message = Codec(dialect_of(str(tmp_path / "own.toml"))), Message(b"", "0100", {127: "ABC"})
    assert codec.encode(message).endswith(b"\x02" + raw)
    assert codec.decode(codec.encode(message)) == message
    with pytest.raises(BadMessage):
        codec.decode(codec.encode(message)[:-1])


@pytest.mark.parametrize(
    ("filler", "raw"),
    [
        ("before", "0100 4000 2200 2000 0000 15 0371449635398431 0276 0001 19 04111111111111111D30"),
        ("after", "0100 4000 2200 2000 0000 15 3714496353984310 2760 0010 19 4111111111111111D300"),
        ("after_variable", "0100 4000 2200 2000 0000 15 3714496353984310 0276 0001 19 4111111111111111D300"),
    ],
)
def test_an_odd_number_of_packed_digits_is_filled_where_the_dialect_says(filler: str, raw: str, tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text(f'extends = "1987-binary"\nfiller = "{filler}"\n')
    codec, whole = Codec(dialect_of(str(tmp_path / "own.toml"))), bytes.fromhex(raw)
    message = Message(b"", "0100", {2: "371449635398431", 19: "276", 23: "001", 35: "4111111111111111D30"})
    assert codec.decode(whole) == message
    assert codec.encode(message) == whole
    with pytest.raises(BadMessage):
        codec.decode(bytes.fromhex(raw.replace("2760", "2761").replace("0276", "1276")))


def test_what_is_filled_behind_may_be_filled_with_f(tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text('extends = "1987-binary"\nfiller = "after"\n')
    codec = Codec(dialect_of(str(tmp_path / "own.toml")))
    assert codec.decode(bytes.fromhex("0100 4000 0000 0000 0000 15 371449635398431F")).fields == {2: "371449635398431"}


@pytest.mark.parametrize(
    "text",
    [
        "version = 1987",
        'extends = "1987-ascii"\nversion = 2003',
        'extends = "1987-ascii"\n[fields]\n2 = "n 19 digits"',
        'extends = "1987-ascii"\n[map]\nstan = "129"',
        'extends = "1987-ascii"\n[map]\nno_such = "11"',
        'extends = "1987-ascii"\n[kinds]\n99 = "barter"',
        'extends = "1987-ascii"\n[fields]\n4 = 12',
        'extends = "1987-ascii"\n[map]\nstan = [11]',
        'extends = "1987-ascii"\n[fields]\n39 = "an 1"',
        'extends = "1993-ascii"\n[fields]\n39 = "an 2"',
        'extends = "1987-ascii"\n[fields]\n38 = "n 6"',
        'extends = "1987-ascii"\n[fields]\n54 = "b ..20"',
        'extends = "own.toml"',
        "[",
        f"version = {'[' * 4_000}{']' * 4_000}",
    ],
)
def test_a_dialect_that_is_wrong_is_said(text: str, tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text(text)
    with pytest.raises(SettingsError, match=r"own\.toml"):
        dialect_of(str(tmp_path / "own.toml"))


JPOS = {
    "iso87ascii.xml": (
        'extends = "1987-ascii"\nbitmap = "hex"\n[fields]\n52 = "an 16"\n128 = "an 16"\n',
        (
            "30313030463233383434383132384531393030303030303030303030303430303030303131353337383238323234363331303030353030303030"
            "30303030303030303031303030303130313132303030303030303030313133303030303031303135343131303531303030353132333435333633"
            "37383238323234363331303030353D33303132313031303030303031323334353637383630303131323030303030315445524D303030314D4552"
            "4348414E5430303030303031412053484F50202020202020202020202020202020202020204245524C494E202020202020204445303033616263"
            "393738303130323033303430353036303746383032613130383037303630353034303330323031"
        ),
    ),
    "iso87binary.xml": (
        'extends = "1987-binary"\nfiller = "after_variable"\n',
        (
            "0100F238448128E19000000000000400000115378282246310005000000000000000100001011200000000011300000101541100510005123450"
            "36378282246310005D301210100000123456783630303131323030303030315445524D303030314D45524348414E543030303030303141205348"
            "4F50202020202020202020202020202020202020204245524C494E202020202020204445000361626339373801020304050607F8026131080706"
            "0504030201"
        ),
    ),
    "iso93ascii.xml": (
        'extends = "1993-ascii"\nbitmap = "hex"\n[fields]\n52 = "an 16"\n128 = "an 16"\n',
        (
            "31313030463233303035343132384531393030303030303030303030303430303030303131353337383238323234363331303030353030303030"
            "30303030303030303031303030303130313132303030303030303030313236303130313133303030303531303130313531333334343130303534"
            "31313035313233343533363337383238323234363331303030353D33303132313031303030303031323334353637383630303131323030303030"
            "315445524D303030314D45524348414E54303030303030313333412053484F505C5354524545545C4245524C494E5C3130313135202020202044"
            "45303033616263393738303130323033303430353036303746383032613130383037303630353034303330323031"
        ),
    ),
}
"""What jPOS 2.1.10 packed by each of its packagers, in hexadecimal, and the table of a dialect by which it is read."""


@pytest.mark.parametrize("packager", JPOS)
def test_what_jpos_packs_is_read_and_written_by_a_table(packager: str, tmp_path: Path) -> None:
    table, packed = JPOS[packager]
    (tmp_path / "bank.toml").write_text(table)
    codec = Codec(dialect_of(str(tmp_path / "bank.toml")))
    message = codec.decode(bytes.fromhex(packed))
    fields = message.fields
    assert message.mti == ("1100" if "93" in packager else "0100")
    own = {2: "378282246310005", 4: "000000001000", 11: "000001", 32: "12345", 41: "TERM0001", 42: "MERCHANT0000001", 48: "abc", 49: "978"}
    assert {number: fields[number] for number in own} == own
    assert (fields[52], fields[102], fields[128]) == ("01020304050607F8", "a1", "0807060504030201")
    assert fields[35].replace("D", "=") == "378282246310005=30121010000012345678"
    assert fields[43].strip().endswith("DE")
    assert codec.encode(message) == bytes.fromhex(packed)
