"""Dead letters are listed, mended and sent back; what is still not valid is not sent."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from pathlib import Path

import fastavro
import msgspec
import numpy as np
import pytest

from schemas.avro import decode, encode, frame
from schemas.catalogue import VERSIONS
from schemas.dead_letter import DeadLetter
from schemas.errors import InvalidRecord, SettingsError
from schemas.hold import Clearing
from schemas.topics import CLEARINGS, DEAD_LETTERS, DECISIONS
from schemas.transaction import TransactionKind
from streams.bus import KafkaBus
from streams.dead_letters import _shown, dead_letters, mended, topic_of
from streams.settings import Settings
from tests.models.decisions import a_decision
from tests.streams.conftest import NO_LETTER, a_clearing, messages


def a_letter(name: str, value: bytes) -> DeadLetter:
    """A clearing that could not be applied."""
    return DeadLetter(
        dead_letter_id=f"dlq_{name}",
        app="hold",
        topic=CLEARINGS.name,
        partition=0,
        offset=7,
        code="invalid_field",
        field="amount_minor",
        reason="too small",
        key=b"a1",
        value=value,
        at_ms=1,
    )


def wire_bytes(**changes: object) -> bytes:
    """A clearing as someone may write it who does not validate."""
    schema = json.loads([v.schema for v in VERSIONS if v.record == "Clearing"][-1])
    out = io.BytesIO()
    fastavro.schemaless_writer(out, schema, msgspec.to_builtins(a_clearing("c1", "a1")) | changes)
    return frame(Clearing) + out.getvalue()


def test_a_field_is_mended_and_the_rest_stays() -> None:
    letter = a_letter("1", wire_bytes(amount_minor=-5, currency="eur"))
    assert mended(letter, CLEARINGS, None, ["amount_minor=5", "currency=EUR"]) == msgspec.structs.replace(a_clearing("c1", "a1"), amount_minor=5)
    with pytest.raises(InvalidRecord) as fault:
        mended(letter, CLEARINGS, None, ["amount_minor=5"])
    assert fault.value.field == "currency"
    with pytest.raises(SettingsError):
        mended(letter, CLEARINGS, None, ["amount_minor"])
    half = mended(letter, CLEARINGS, None, ["amount_minor=5", "currency=EUR", 'clearing_id="\\ud800"'])
    assert encode(half), "what is no JSON is text: half a character is none"


def test_bytes_that_do_not_decode_need_a_whole_new_value() -> None:
    letter = a_letter("1", b"rubbish")
    with pytest.raises(InvalidRecord, match="--value-file"):
        mended(letter, CLEARINGS, None, ["amount_minor=5"])
    clearing = a_clearing("c1", "a1")
    assert mended(letter, CLEARINGS, msgspec.json.encode(clearing), []) == clearing
    assert mended(letter, CLEARINGS, encode(clearing), []) == clearing


def test_a_letter_of_a_decision_is_shown_with_its_vector_as_base64() -> None:
    vector = np.array([1.0, np.nan]).tobytes()
    decision = msgspec.structs.replace(a_decision("t1", TransactionKind.REFUND, 100), vector=vector)
    letter = msgspec.structs.replace(a_letter("1", encode(decision)), topic=DECISIONS.name)
    shown = json.loads(json.dumps(_shown(letter)))
    assert shown["record"]["transaction_id"] == "t1"
    assert base64.b64decode(shown["record"]["vector"]) == vector


def test_a_letter_from_a_topic_that_no_release_knows_any_more_is_listed_and_not_sent() -> None:
    letter = msgspec.structs.replace(a_letter("1", wire_bytes()), topic="settlements")
    assert _shown(letter)["record"] is None
    with pytest.raises(InvalidRecord, match="topic: 'settlements' is no topic of this release"):
        topic_of(letter)


def test_letters_are_listed_and_sent_back(real: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = real.changed(produce_timeout_ms=20_000)

    async def told() -> None:
        bus = KafkaBus(settings)
        for name, value in (("mend1", wire_bytes(amount_minor=-5)), ("mend2", b"rubbish"), ("mend2", b"rubbish")):
            await bus.tell(DEAD_LETTERS, f"dlq_{name}", encode(a_letter(name, value)))
        await bus.tell(DEAD_LETTERS, "dlq_none", NO_LETTER)
        await bus.close()

    asyncio.run(told())
    assert dead_letters(["--json", "--code", "invalid_field"], settings) == 0
    said = capsys.readouterr()
    assert "is no dead letter: schema_id" in said.err
    shown = json.loads(said.out.splitlines()[-1])
    by_id = {letter["dead_letter_id"]: letter for letter in shown["letters"]}
    assert shown["count"] == len(by_id)
    assert by_id["dlq_mend1"]["record"]["amount_minor"] == -5
    assert by_id["dlq_mend2"]["record"] is None
    assert dead_letters(["--json", "resend", "dlq_mend1"], settings) == 1
    said = capsys.readouterr()
    assert "amount_minor" in said.err
    assert json.loads(said.out)["field"] == "amount_minor"
    assert dead_letters(["--json", "resend", "dlq_mend1", "--set", "amount_minor=42"], settings) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == {"dead_letter_id": "dlq_mend1", "sent": True, "topic": CLEARINGS.name}
    assert dead_letters(["resend", "dlq_none"], settings) == 1
    file = tmp_path / "mended.json"
    file.write_bytes(msgspec.json.encode(a_clearing("c2", "a2")))
    assert dead_letters(["resend", "dlq_mend2", "--value-file", str(file)], settings) == 0
    sent = [decode(Clearing, m.value) for m in messages(settings, CLEARINGS)]
    assert sorted((c.clearing_id, c.amount_minor) for c in sent if c.clearing_id in ("c1", "c2")) == [("c1", 42), ("c2", 100)]
