"""The ISO 8583 door: what a host sends, what it gets, many at once, and that the first answer stands."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from models.answer import FIELD_39
from models.hold import Refusal, Step, cleared, confirm, terms_of, told
from models.registry import default_stand_in_text
from models.stand_in import stand_in_from_toml
from schemas.errors import MemoryUnavailable
from schemas.identity import keyed_token
from schemas.topics import CLEARINGS, DECISIONS
from schemas.transaction import TransactionKind
from streams import metrics
from streams.answers import listed_of
from streams.authorize import iso8583
from streams.authorize.codec import Message
from streams.authorize.life import NotCleared
from streams.forward import forward
from streams.spool import Spool
from streams.stand_in import StandIn
from tests.iso8583.host import KEY, NOON, PAN, Host, Scene, about, at_the_gateway, fields_of, transaction_id

NETWORK = {7: "0101120000", 11: "000077"}


def test_an_authorization_is_answered_field_by_field() -> None:
    async def play(scene: Scene, host: Host) -> None:
        mti, got = await host.ask("0100", fields_of())
        (decision,) = scene.world.decisions
        assert mti == "0110"
        sent = fields_of()
        assert {n: v for n, v in got.items() if n not in (38, 39)} == {n: sent[n] for n in (3, 4, 7, 11, 12, 13, 32, 37, 41, 42, 49)}
        assert got[39] == "00"
        assert len(got[38]) == 6
        assert decision.transaction_id == transaction_id()
        assert (decision.source_topic, decision.held_minor) == ("iso8583", 1_000)

    at_the_gateway(play)


def test_the_elements_become_the_transaction_that_http_would_have_made() -> None:
    async def play(scene: Scene, host: Host) -> None:
        await host.ask("0100", fields_of(f6="000000001234", f51="840", f22="811"))
        txn = scene.world.decisions[0].transaction
        assert (txn.kind, txn.at_ms, txn.amount_minor, txn.currency) == (TransactionKind.ECOMMERCE, NOON, 1_000, "EUR")
        assert (txn.billing_amount_minor, txn.billing_currency) == (1_234, "USD")
        assert (txn.account_id, txn.mcc, txn.merchant_id, txn.terminal_id, txn.country) == ("a1", "5411", "MERCHANT0000001", "TERM0001", "DE")
        assert txn.card_token == keyed_token(KEY, "k1", "crd", PAN)
        assert (txn.card_bin, txn.card_last4) == ("411111", "1111")

    at_the_gateway(play)


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"f3": "010000"}, TransactionKind.ATM),
        ({"f3": "200000"}, TransactionKind.REFUND),
        ({"f22": "071"}, TransactionKind.CONTACTLESS),
        ({"f25": "08"}, TransactionKind.MOTO),
        ({"f25": "59"}, TransactionKind.ECOMMERCE),
        ({}, TransactionKind.CARD_PRESENT),
    ],
)
def test_the_kind_follows_from_processing_code_condition_and_entry(changes: dict[str, Any], kind: TransactionKind) -> None:
    async def play(scene: Scene, host: Host) -> None:
        await host.ask("0200", fields_of(**changes))
        assert scene.world.decisions[0].transaction.kind is kind

    at_the_gateway(play)


def test_a_credit_that_the_dialect_does_not_name_is_no_purchase() -> None:
    async def play(scene: Scene, host: Host) -> None:
        assert await host.code("0200", fields_of(f3="280000")) == "12"
        assert scene.world.decisions == []

    at_the_gateway(play)


def test_a_repeat_gets_the_same_answer_and_a_changed_one_is_a_duplicate() -> None:
    async def play(scene: Scene, host: Host) -> None:
        for _ in range(3):
            host.send("0100", fields_of())
        host.send("0101", fields_of())
        answers = [await host.read() for _ in range(4)]
        scene.world.now_ms += 60_000
        answers.append(Message(b"", *await host.ask("0101", fields_of())))
        assert all(answer == answers[0] for answer in answers)
        assert len(scene.world.decisions) == 1
        assert await host.code("0100", fields_of(f4="000000002000")) == "94"
        assert await host.code("0100", fields_of(f11="000002")) == "00"

    at_the_gateway(play)


def test_a_repeat_may_carry_the_time_of_its_own_sending_and_nothing_else_of_its_own() -> None:
    async def play(scene: Scene, host: Host) -> None:
        host.send("0100", fields_of())
        host.send("0101", fields_of(f7="0101120005"))
        first, under_way = await host.read(), await host.read()
        assert first.fields[38] == under_way.fields[38]
        scene.world.now_ms += 60_000
        _, got = await host.ask("0101", fields_of(f7="0101120100"))
        assert (got[39], got[38], got[7]) == ("00", first.fields[38], "0101120100")
        assert await host.code("0101", fields_of(f7="0101120100", f4="000000002000")) == "94"
        assert await host.code("0100", fields_of(f7="0101120100")) == "94", "no repeat, but the same numbers again"
        assert len(scene.world.decisions) == 1
        assert await host.code("0101", fields_of(f11="000002")) == "00", "the first never came"
        assert await host.code("0100", about(f11="000010", f4="000000000500")) == "00"
        assert await host.code("0101", about(f11="000010", f4="000000000500", f7="0101120100")) == "00", "an increment's too"
        assert len(scene.world.decisions) == 3

    at_the_gateway(play)


def test_a_repeat_with_its_own_time_gets_the_first_answer_though_the_memory_is_gone(tmp_path: Path) -> None:
    async def play(scene: Scene, host: Host) -> None:
        async def gone(*_: object) -> Any:
            raise MemoryUnavailable("gone")

        scene.world.world.stand_in = StandIn(stand_in_from_toml(default_stand_in_text()), *Spool.opened(tmp_path, list))
        _, first = await host.ask("0100", fields_of())
        assert first[39] == "00"
        scene.world.world.memory.recall_all = scene.world.answers.of_transaction = gone  # type: ignore[method-assign,assignment]
        scene.world.now_ms += 60_000
        _, again = await host.ask("0101", fields_of(f7="0101120100"))
        assert (again[39], again[38]) == ("00", first[38])
        assert await host.code("0101", fields_of(f7="0101120100", f4="000000002000")) == "94"
        await scene.world.world.stand_in.close()

    at_the_gateway(play)


def test_what_the_stand_in_said_at_this_door_is_told_as_asked_at_this_door(tmp_path: Path) -> None:
    async def play(scene: Scene, host: Host) -> None:
        async def gone(*_: object) -> Any:
            raise MemoryUnavailable("gone")

        world = scene.world.world
        stand_in = world.stand_in = StandIn(stand_in_from_toml(default_stand_in_text()), *Spool.opened(tmp_path, list))
        with pytest.MonkeyPatch.context() as away:
            away.setattr(world.memory, "recall_all", gone)
            assert await host.code("0100", fields_of()) == "91"
        telling = asyncio.create_task(forward(stand_in, world))
        async with asyncio.timeout(5):
            while stand_in.pending:
                await asyncio.sleep(0.01)
        telling.cancel()
        assert [decision.source_topic for decision in scene.world.decisions] == ["iso8583"]
        await stand_in.close()

    at_the_gateway(play)


def test_what_the_account_refuses_has_its_own_code() -> None:
    async def play(scene: Scene, host: Host) -> None:
        assert await host.code("0100", fields_of(f4="000000010001")) == "51"
        assert await host.code("0100", fields_of(f11="000002", f102="a9")) == "14"
        assert await host.code("0100", fields_of(f11="000003", f49="840")) == "57"

    at_the_gateway(play)


@pytest.mark.parametrize(
    "changes", [{"f102": "a" * 65}, {"f103": "b" * 65}, {"f42": "m" * 65}, {"f41": "t" * 65}, {"f18": "541"}, {"f4": "9" * 16}, {"f6": "C1"}]
)
def test_what_a_banks_own_element_carries_and_no_record_holds_is_a_format_error(changes: dict[str, Any], tmp_path: Path) -> None:
    own = tmp_path / "own.toml"
    rows = "".join(f'{number} = "ans ..99"\n' for number in (4, 6, 18, 41, 42, 102, 103))
    own.write_text(f'extends = "1987-ascii"\necho = [11]\n[fields]\n{rows}')

    async def play(scene: Scene, host: Host) -> None:
        assert await host.code("0100", fields_of(f51="978", f6="1000")) == "00"
        assert await host.code("0100", fields_of(**({"f11": "000002", "f51": "978", "f6": "1000"} | changes))) == "30"
        assert len(scene.world.decisions) == 1

    at_the_gateway(play, str(own))


@pytest.mark.parametrize("number", [3, 4, 7, 11, 32, 37, 49])
def test_a_missing_element_is_a_format_error(number: int) -> None:
    async def play(scene: Scene, host: Host) -> None:
        assert await host.code("0100", fields_of(**{f"f{number}": None})) == "30"
        assert scene.world.decisions == []

    at_the_gateway(play)


@pytest.mark.parametrize(
    "changes", [{"f7": "1301120000"}, {"f7": "0102130000"}, {"f49": "999"}, {"f2": "411"}, {"f2": "0" * 11}, {"f6": "000000000001"}]
)
def test_an_element_that_says_nonsense_is_a_format_error(changes: dict[str, Any]) -> None:
    async def play(scene: Scene, host: Host) -> None:
        assert await host.code("0100", fields_of(**changes)) == "30"
        assert scene.world.decisions == []

    at_the_gateway(play)


def test_the_card_number_may_come_in_track_2_and_the_account_be_the_cards() -> None:
    async def play(scene: Scene, host: Host) -> None:
        await host.ask("0100", fields_of(f2=None, f35=f"{PAN}=30121011000", f102=None))
        await host.ask("0100", fields_of(f11="000002", f102=PAN))
        first, second = [d.transaction for d in scene.world.decisions]
        assert first.card_token == second.card_token == keyed_token(KEY, "k1", "crd", PAN)
        assert first.account_id == second.account_id == keyed_token(KEY, "k1", "acc", PAN)

    at_the_gateway(play)


def test_a_broken_message_is_answered_with_what_could_be_read_and_the_next_is_decided() -> None:
    async def play(scene: Scene, host: Host) -> None:
        whole = host.codec.encode(Message(b"", "0100", fields_of()))
        host.send_raw(whole[:-3])
        host.send_raw(whole + b"x")
        for _ in range(2):
            _, mti, got = await host.read()
            assert (mti, got[11], got[37], got[39]) == ("0110", "000001", "600112000001", "30")
        assert await host.code("0100", fields_of()) == "00"

    at_the_gateway(play)


@pytest.mark.parametrize("data", [b"", b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 100, b"\x00\x04abcd", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03"])
def test_who_does_not_speak_iso_8583_is_cut_or_left_waiting(data: bytes) -> None:
    async def play(scene: Scene, host: Host) -> None:
        host.writer.write(data)
        host.writer.write_eof()
        assert await host.is_cut()

    at_the_gateway(play)


@pytest.mark.parametrize(("mti", "answered", "code"), [("0300", "0310", "12"), ("1100", "1110", "12"), ("0140", "0150", "12")])
def test_a_message_that_we_do_not_serve_is_said_to_be_invalid(mti: str, answered: str, code: str) -> None:
    async def play(scene: Scene, host: Host) -> None:
        got = await host.ask(mti, fields_of())
        assert (got[0], got[1][39]) == (answered, code)

    at_the_gateway(play)


@pytest.mark.parametrize("mti", ["0110", "0410", "0610", "1110", "9990"])
def test_an_answer_is_not_answered(mti: str) -> None:
    async def play(scene: Scene, host: Host) -> None:
        host.send(mti, fields_of())
        assert (await host.ask("0800", NETWORK | {70: "301"}))[0] == "0810"

    at_the_gateway(play)


def test_a_host_signs_on_echoes_and_signs_off() -> None:
    async def play(scene: Scene, host: Host) -> None:
        for code in ("001", "301"):
            assert await host.ask("0800", NETWORK | {70: code}) == ("0810", NETWORK | {70: code, 39: "00"})
        assert await host.code("0800", NETWORK | {70: "999"}) == "12"
        assert await host.code("0800", NETWORK | {70: "002"}) == "00"
        assert await host.code("0100", fields_of()) == "91"
        assert await host.code("0800", NETWORK | {70: "301"}) == "00"
        assert await host.code("0800", NETWORK | {70: "001"}) == "00"
        assert await host.code("0100", fields_of()) == "00"

    at_the_gateway(play)


def test_a_thousand_in_flight_on_one_connection_are_matched_by_their_keys() -> None:
    async def play(scene: Scene, host: Host) -> None:
        scene.world.know(balance_minor=10_000_000)
        for n in range(1_000):
            host.send("0100", fields_of(f11=f"{n:06}", f4=f"{n:012}", f102=f"a{n % 7}"))
        got = {message.fields[11]: message.fields for message in [await asyncio.wait_for(host.read(), 600) for _ in range(1_000)]}
        assert len(got) == 1_000
        assert all(int(fields[11]) == int(fields[4]) for fields in got.values())
        assert len(scene.world.decisions) == 1_000

    at_the_gateway(play)


def test_a_host_that_comes_back_on_another_connection_gets_the_same_answer() -> None:
    async def play(scene: Scene, host: Host) -> None:
        host.send("0100", fields_of())
        await host.writer.drain()
        host.writer.close()
        again = await scene.connect()
        assert await again.code("0101", fields_of()) == "00"
        assert len(scene.world.decisions) == 1

    at_the_gateway(play)


def test_a_capture_takes_the_hold_once_and_its_repeat_is_the_same() -> None:
    async def play(scene: Scene, host: Host) -> None:
        assert await host.code("0100", fields_of()) == "00"
        assert await host.code("0220", about(f4="000000000700")) == "00"
        assert await host.code("0221", about(f4="000000000700", f7="0101120130")) == "00"
        assert await host.code("0220", about(f4="000000000600")) == "94"
        assert await host.code("0120", about(f11="000901", f4="000000000300")) == "21"
        assert await host.code("0420", about(f11="000902")) == "21"
        (clearing,) = scene.world.bus.records(CLEARINGS)
        assert (clearing.transaction_id, clearing.kind, clearing.amount_minor) == (transaction_id(), "capture", 700)  # type: ignore[attr-defined]

    at_the_gateway(play)


def test_a_reversal_gives_the_hold_back_once() -> None:
    async def play(scene: Scene, host: Host) -> None:
        assert await host.code("0100", fields_of()) == "00"
        assert await host.code("0400", about()) == "00"
        assert await host.code("0401", about()) == "00"
        assert await host.code("0420", about(f11="000903")) == "21"
        (clearing,) = scene.world.bus.records(CLEARINGS)
        assert (clearing.transaction_id, clearing.kind, clearing.amount_minor) == (transaction_id(), "reversal", 0)  # type: ignore[attr-defined]

    at_the_gateway(play)


def test_captures_and_reversals_are_refused_by_name() -> None:
    async def play(scene: Scene, host: Host) -> None:
        assert await host.code("0220", about()) == "25", "nobody knows the original"
        assert await host.code("0100", fields_of()) == "00"
        assert await host.code("0220", about(f4="000000001001")) == "13", "more than was held"
        assert await host.code("0220", about(f49="840")) == "12", "another currency"
        assert await host.code("0420", about(f102="a2")) == "25", "another account"
        assert await host.code("0220", about(f7="1231120000")) == "30", "a day before the authorization"
        assert await host.code("0420", about(f95="000000001000" + "0" * 30)) == "30", "nothing of it"
        assert await host.code("0100", fields_of(f11="000002", f4="000000099999")) == "51"
        assert await host.code("0420", about("000002")) == "21", "nothing was held"
        scene.world.now_ms += 40 * 86_400_000
        assert await host.code("0220", about(f7="0210120000")) == "21", "it expired"
        assert scene.world.bus.records(CLEARINGS) == []

    at_the_gateway(play)


@pytest.mark.parametrize("code", ["200000", "210000", "280000"])
def test_an_advice_that_brings_money_in_takes_none(code: str) -> None:
    async def play(scene: Scene, host: Host) -> None:
        assert await host.code("0100", fields_of()) == "00"
        assert await host.code("0220", about(f3=code, f4="000000000400")) == "12"
        assert await host.code("0220", about(f4="000000001000")) == "00", "the hold is whole"
        assert len(scene.world.bus.records(CLEARINGS)) == 1

    at_the_gateway(play)


def test_a_part_is_reversed_and_the_rest_captured_in_several_messages() -> None:
    async def play(scene: Scene, host: Host) -> None:
        assert await host.code("0100", fields_of()) == "00"
        stays = {"f95": "000000000800" + "0" * 30}
        assert await host.code("0400", about(**stays)) == "00"
        assert await host.code("0401", about(**stays)) == "00"
        assert await host.code("0220", about(f11="000901", f4="000000000300", f71="0001", f72="0003")) == "00"
        assert await host.code("0221", about(f11="000901", f4="000000000300", f71="0001", f72="0003")) == "00"
        assert await host.code("0220", about(f11="000902", f4="000000000501", f71="0002", f72="0003")) == "13"
        assert await host.code("0220", about(f11="000903", f4="000000000400", f71="0003", f72="0003")) == "00"
        assert await host.code("0220", about(f11="000904", f4="000000000001")) == "21"
        made = scene.world.bus.records(CLEARINGS)
        assert [(c.kind, c.amount_minor, c.final) for c in made] == [  # type: ignore[attr-defined]
            ("reversal", 200, True),
            ("capture", 300, False),
            ("capture", 400, True),
        ]

    at_the_gateway(play)


def test_a_second_reversal_in_part_of_the_same_amount_leaves_what_it_says() -> None:
    def down_to(minor: int, stan: str, was: int = 1_000) -> dict[int, str]:
        return about(f11=stan, f4=f"{was:012}", f95=f"{minor:012}{0:030}")

    async def play(scene: Scene, host: Host) -> None:
        assert await host.code("0100", fields_of()) == "00"
        assert await host.code("0420", down_to(700, "000901")) == "00"
        assert await host.code("0420", down_to(700, "000902")) == "00", "the same again under another trace number: it stands so"
        assert await host.code("0420", down_to(400, "000903")) == "00"
        assert await host.code("0421", down_to(400, "000903")) == "00"
        assert await host.code("0420", down_to(500, "000904")) == "13", "a reversal raises nothing"
        assert await host.code("0420", down_to(300, "000905", was=400)) == "00", "of what was left"
        assert await host.code("0220", about(f11="000906", f4="000000000301")) == "13"
        assert await host.code("0220", about(f11="000907", f4="000000000300")) == "00"
        made = scene.world.bus.records(CLEARINGS)
        assert [(c.kind, c.amount_minor) for c in made] == [("reversal", 300), ("reversal", 300), ("reversal", 100), ("capture", 300)]  # type: ignore[attr-defined]

    at_the_gateway(play)


def test_what_follows_of_the_same_card_need_not_name_the_account_again() -> None:
    async def play(scene: Scene, host: Host) -> None:
        assert await host.code("0100", fields_of()) == "00"
        assert await host.code("0220", about(f102=None, f4="000000000300", f71="0001", f72="0002")) == "00"
        assert await host.code("0221", about(f102=None, f4="000000000300", f71="0001", f72="0002")) == "00"
        assert await host.code("0420", about(f102=None, f2="5500000000000004", f11="000901")) == "25", "another card"
        assert await host.code("0420", about(f102=None, f2=None, f35=f"{PAN}=30121011000", f11="000902")) == "00"

    at_the_gateway(play)


def test_nor_need_what_follows_of_an_increment() -> None:
    async def play(scene: Scene, host: Host) -> None:
        assert await host.code("0100", fields_of()) == "00"
        assert await host.code("0100", about(f11="000010", f4="000000000500")) == "00"
        for decision in scene.world.decisions:
            scene.world.answers.enlist(listed_of(decision))  # as the `hold` app does
        assert await host.code("0420", about("000010", f102=None, f2="5500000000000004", f11="000011")) == "25", "another card"
        assert await host.code("0420", about("000010", f102=None, f11="000012")) == "00"
        assert [clearing.account_id for clearing in scene.world.bus.records(CLEARINGS)] == ["a1"]  # type: ignore[attr-defined]

    at_the_gateway(play)


def test_a_trace_number_of_zeros_is_one_and_original_data_of_zeros_are_none() -> None:
    async def play(scene: Scene, host: Host) -> None:
        assert await host.code("0100", fields_of(f11="000000")) == "00"
        assert await host.code("0420", about("000000")) == "00"
        assert await host.code("0100", fields_of(f90="0" * 42)) == "00"
        assert await host.code("0420", fields_of(f90="0" * 42)) == "00", "that with its own key"

    at_the_gateway(play)


def test_a_reversal_waits_for_the_authorization_that_it_overtook() -> None:
    async def play(scene: Scene, host: Host) -> None:
        host.send("0100", fields_of())
        host.send("0420", about())
        got = {message.mti: message.fields[39] for message in (await host.read(), await host.read())}
        assert got == {"0110": "00", "0430": "00"}

    at_the_gateway(play)


@pytest.mark.parametrize("named", ["000001", "000010"])
def test_a_reversal_waits_for_the_increment_that_it_overtook(named: str) -> None:
    async def play(scene: Scene, host: Host) -> None:
        tell = scene.world.bus.tell
        assert await host.code("0100", fields_of()) == "00"
        scene.world.world.bus.tell = lambda *told: asyncio.ensure_future(asyncio.sleep(0.1)) if tell(*told) else None  # type: ignore[method-assign, assignment]
        host.send("0100", about(f11="000010", f4="000000000500"))
        await asyncio.sleep(0.05)
        host.send("0420", about(named, f11="000011"))
        got = {message.mti: message.fields[39] for message in (await host.read(), await host.read())}
        assert got == {"0110": "00", "0430": "00"}
        given_back = [clearing.transaction_id for clearing in scene.world.bus.records(CLEARINGS)]  # type: ignore[attr-defined]
        assert scene.world.decisions[1].transaction_id in given_back

    at_the_gateway(play)


def test_an_authorization_that_comes_after_its_reversal_is_refused() -> None:
    async def play(scene: Scene, host: Host) -> None:
        assert await host.code("0400", about()) == "25"
        assert await host.code("0421", about()) == "25"
        assert await host.code("0100", fields_of()) == "94"
        assert await host.code("0101", fields_of()) == "94"
        assert scene.world.decisions == []
        assert await host.code("0100", fields_of(f11="000002")) == "00"
        assert await host.code("0400", about("000003", f11="000901")) == "25", "the increment that it overtook"
        assert await host.code("0100", about("000002", f11="000003")) == "94"

    at_the_gateway(play)


def test_an_increment_raises_the_hold_and_is_captured_with_it() -> None:
    async def play(scene: Scene, host: Host) -> None:
        assert await host.code("0100", fields_of()) == "00"
        assert await host.code("0100", about(f11="000010", f4="000000000500")) == "00"
        assert await host.code("0101", about(f11="000010", f4="000000000500")) == "00"
        assert await host.code("0100", about(f11="000011", f4="000000009000")) == "51"
        assert await host.code("0220", about(f4="000000001501")) == "13"
        assert await host.code("0220", about(f4="000000001200")) == "00"
        made = scene.world.bus.records(CLEARINGS)
        assert [(c.kind, c.amount_minor) for c in made] == [("capture", 1_000), ("capture", 200)]  # type: ignore[attr-defined]
        assert len({c.clearing_id for c in made}) == 2  # type: ignore[attr-defined]

    at_the_gateway(play)


def test_an_increment_waits_for_the_authorization_that_it_overtook() -> None:
    async def play(scene: Scene, host: Host) -> None:
        host.send("0100", fields_of())
        host.send("0100", about(f11="000010", f4="000000000500"))
        assert [(await host.read()).fields[39] for _ in range(2)] == ["00", "00"]
        assert [decision.held_minor for decision in scene.world.decisions] == [1_000, 500]

    at_the_gateway(play)


def test_an_increment_may_name_the_increment_before_it() -> None:
    async def play(scene: Scene, host: Host) -> None:
        assert await host.code("0100", fields_of()) == "00"
        assert await host.code("0100", about(f11="000010", f4="000000000500")) == "00"
        assert await host.code("0100", about("000010", f11="000011", f4="000000000300")) == "00"
        assert await host.code("0101", about("000010", f11="000011", f4="000000000300")) == "00"
        assert await host.code("0100", about("000012", f11="000013", f4="000000000300")) == "25", "nobody knows that one"
        assert await host.code("0220", about(f11="000014", f4="000000001801")) == "13"
        assert await host.code("0220", about(f11="000014", f4="000000001800")) == "00"
        assert len(scene.world.decisions) == 3

    at_the_gateway(play)


def test_what_is_said_of_an_increment_finds_it_when_its_hold_has_gone() -> None:
    async def play(scene: Scene, host: Host) -> None:
        assert await host.code("0100", fields_of()) == "00"
        assert await host.code("0100", about(f11="000010", f4="000000000500")) == "00"
        assert await host.code("0420", about("000010", f11="000012")) == "00"
        book = scene.world.books.books["a1"]
        for decision in scene.world.decisions:  # as the `hold` app does
            scene.world.answers.enlist(listed_of(decision))
            book = confirm(book, terms_of(decision)).book
        for clearing in scene.world.bus.records(CLEARINGS):
            step = cleared(book, clearing)  # type: ignore[arg-type]
            assert isinstance(step, Step)
            book = told(step.book, step.hold)
        scene.world.books.books["a1"] = book
        assert [hold.amount_minor for hold in book.holds] == [1_000]
        assert await host.code("0421", about("000010", f11="000012")) == "00", "the first answer stands"
        assert await host.code("0100", about("000010", f11="000013", f4="000000000300")) == "00", "it still names what it raised"

    at_the_gateway(play)


def test_an_increment_of_what_is_not_held_is_refused_and_one_alone_can_be_reversed() -> None:
    async def play(scene: Scene, host: Host) -> None:
        assert await host.code("0100", about(f11="000010")) == "25", "nobody knows the original"
        assert await host.code("0100", fields_of()) == "00"
        assert await host.code("0100", about(f11="000010", f102="a2")) == "25", "another account"
        assert await host.code("0100", about(f11="000010", f3="200000")) == "12", "a refund"
        assert await host.code("0100", about(f11="000010", f2="5500000000000004")) == "12", "another card"
        assert await host.code("0100", about(f11="000011", f4="000000000500")) == "00"
        assert await host.code("0420", about("000011", f11="000012")) == "00", "the increment alone"
        assert await host.code("0421", about("000011", f11="000012")) == "00"
        (clearing,) = scene.world.bus.records(CLEARINGS)
        assert clearing.transaction_id == scene.world.decisions[1].transaction_id  # type: ignore[attr-defined]
        assert await host.code("0420", about(f11="000013")) == "00"
        assert await host.code("0100", about(f11="000014")) == "21", "the original was reversed"
        assert await host.code("0101", about(f11="000011", f4="000000000500")) == "00", "the first answer stands"

    at_the_gateway(play)


def test_what_waited_behind_others_longer_than_its_host_waits_is_not_begun() -> None:
    async def play(scene: Scene, host: Host) -> None:
        assert await host.code("0100", fields_of()) == "00"
        for work, mti, fields in (("authorize", "0100", fields_of(f11="000002")), ("capture", "0220", about()), ("reverse", "0420", about())):
            answer = await scene.desk.answer(work, Message(b"", mti, fields), time.perf_counter() - 60.1)
            assert answer.name == "deadline", work
        assert len(scene.world.decisions) == 1
        assert CLEARINGS.name not in scene.world.bus.told

    at_the_gateway(play, deadline_ms=60_000)


def test_a_log_that_does_not_answer_is_91_and_a_repeat_is_safe() -> None:
    async def play(scene: Scene, host: Host) -> None:
        scene.world.bus.down = True
        assert await host.code("0100", fields_of()) == "91"
        scene.world.bus.down = False
        assert await host.code("0101", fields_of()) == "00"
        scene.world.bus.down = True
        assert await host.code("0420", about()) == "91"
        scene.world.bus.down = False
        assert await host.code("0421", about()) == "00"
        assert len(scene.world.bus.told[DECISIONS.name]) == len(scene.world.bus.told[CLEARINGS.name]) == 1

    at_the_gateway(play)


def test_what_takes_too_long_is_91_and_goes_on() -> None:
    async def play(scene: Scene, host: Host) -> None:
        told = scene.world.bus.tell

        def slow(*args: Any) -> Any:
            return asyncio.ensure_future(asyncio.sleep(0.1)) if told(*args) else None

        scene.world.world.bus.tell = slow  # type: ignore[method-assign, assignment]
        assert await host.code("0100", fields_of()) == "91"
        await asyncio.sleep(0.15)
        assert await host.code("0101", fields_of()) == "00"

    at_the_gateway(play, deadline_ms=20)


def test_a_balance_inquiry_says_what_is_available() -> None:
    async def play(scene: Scene, host: Host) -> None:
        assert await host.code("0100", fields_of()) == "00"
        _, got = await host.ask("0100", fields_of(f3="310000", f4=None, f11="000002"))
        assert (got[39], got[54]) == ("00", "0002978C000000009000")
        _, got = await host.ask("0200", fields_of(f3="301000", f4="000000000500", f49="840", f6="000000000400", f51="978", f11="000003"))
        assert (got[39], got[4], got[54]) == ("00", "000000000500", "0002978C000000009000"), "nothing is held for asking"

    at_the_gateway(play)


def test_a_balance_that_cannot_be_read_is_left_out_and_the_answer_stands() -> None:
    async def play(scene: Scene, host: Host) -> None:
        def gone(_: str) -> asyncio.Future[list[Any]]:
            future: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()
            future.set_exception(MemoryUnavailable("gone"))
            return future

        read = scene.world.books.read
        asked = fields_of(f3="310000", f4=None)
        for late in (gone, lambda _: asyncio.get_running_loop().create_future()):
            scene.world.world.books.read = late  # type: ignore[method-assign,assignment]
            _, got = await host.ask("0100", asked)
            assert (got[39], got.get(54)) == ("00", None)
        scene.world.world.books.read = read  # type: ignore[method-assign]
        _, again = await host.ask("0101", asked)
        assert (again[39], again[38], again[54]) == ("00", got[38], "0002978C000000010000")

    at_the_gateway(play, deadline_ms=1_000)


def test_a_frame_that_does_not_end_in_time_cuts_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(iso8583, "FRAME_S_MAX", 0.2)
    monkeypatch.setattr(iso8583, "LOOK_S", 0.05)

    async def play(scene: Scene, host: Host) -> None:
        began = time.monotonic()
        for byte in b"\x00\x50010":
            host.writer.write(bytes((byte,)))
            await asyncio.sleep(0.02)
        assert await host.is_cut()
        assert time.monotonic() - began < 600

    at_the_gateway(play)


def test_a_frame_whose_rest_is_not_read_yet_is_not_late(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(iso8583, "FRAME_S_MAX", 0.2)
    monkeypatch.setattr(iso8583, "LOOK_S", 0.05)
    monkeypatch.setattr(iso8583, "IN_FLIGHT_MAX", 2)

    async def play(scene: Scene, host: Host) -> None:
        tell = scene.world.bus.tell
        scene.world.world.bus.tell = lambda *told: asyncio.ensure_future(asyncio.sleep(0.6)) if tell(*told) else None  # type: ignore[method-assign, assignment]
        frames = [host.header.framed(host.codec.encode(Message(b"", "0100", fields_of(f11=f"00000{n}")))) for n in range(1, 4)]
        host.writer.write(frames[0] + frames[1] + frames[2][:20])
        await asyncio.sleep(0.05)
        host.writer.write(frames[2][20:])
        assert [(await host.read()).fields[39] for _ in frames] == ["00"] * 3

    at_the_gateway(play)


def test_a_host_that_does_not_read_is_not_read_from_and_then_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(iso8583, "UNREAD_S_MAX", 0.2)
    monkeypatch.setattr(iso8583, "UNREAD_BYTES_MAX", 1_024)
    monkeypatch.setattr(iso8583, "LOOK_S", 0.05)

    async def play(scene: Scene, host: Host) -> None:
        echo = host.header.framed(host.codec.encode(Message(b"", "0800", NETWORK | {70: "301"})))
        host.writer.transport.pause_reading()  # type: ignore[attr-defined] # it can read, too
        host.writer.write(echo * 400_000)
        while metrics.REGISTRY.get_sample_value("holdfast_iso8583_lines"):
            await asyncio.sleep(0.02)
        host.writer.transport.abort()

    at_the_gateway(play)


def test_what_was_asked_before_the_gateway_closes_is_answered() -> None:
    async def play(scene: Scene, host: Host) -> None:
        for n in range(50):
            host.send("0100", fields_of(f11=f"{n:06}", f4="000000000001"))
        await host.writer.drain()
        await asyncio.wait_for(host.read(), 600)
        closing = asyncio.create_task(scene.gateway.close())
        got = [await asyncio.wait_for(host.read(), 600) for _ in range(49)]
        await closing
        assert len({message.fields[11] for message in got}) == 49
        assert not {"91", "96"} & {message.fields[39] for message in got}

    at_the_gateway(play)


def test_what_comes_while_the_gateway_closes_is_refused_and_not_begun() -> None:
    async def play(scene: Scene, host: Host) -> None:
        begun, acknowledged = asyncio.Event(), asyncio.Event()
        told = scene.world.bus.tell

        async def late(*args: Any, **more: Any) -> None:
            begun.set()
            await acknowledged.wait()
            await told(*args, **more)

        scene.world.world.bus.tell = lambda *args, **more: asyncio.ensure_future(late(*args, **more))  # type: ignore[method-assign]
        host.send("0100", fields_of(f11="000001", f4="000000000001"))
        await begun.wait()
        closing = asyncio.create_task(scene.gateway.close())
        await asyncio.sleep(0)
        assert await host.code("0100", fields_of(f11="000002", f4="000000000001")) == "91"
        acknowledged.set()
        assert (await asyncio.wait_for(host.read(), 600)).fields[11] == "000001"
        await closing
        assert [decision.transaction_id for decision in scene.world.decisions] == [transaction_id("000001")]

    at_the_gateway(play)


@pytest.mark.parametrize("header", ["binary2", "binary4", "text4"])
@pytest.mark.parametrize("dialect", ["1987-ascii", "1987-binary", "1987-ebcdic"])
def test_every_dialect_and_header_of_1987_decides_the_same(dialect: str, header: Any) -> None:
    async def play(scene: Scene, host: Host) -> None:
        assert await host.code("0100", fields_of()) == "00"
        assert await host.code("0420", about()) == "00"
        assert scene.world.decisions[0].transaction_id == transaction_id()

    at_the_gateway(play, dialect, header)


def test_1993_has_other_types_dates_and_action_codes() -> None:
    async def play(scene: Scene, host: Host) -> None:
        changes = {"f12": "260101130000", "f13": None, "f18": None, "f22": "510101511100", "f25": None, "f26": "5411", "f43": "A SHOP\\\\BERLIN\\DEU"}
        sent = fields_of(**changes, f57="110", f58="123456", f59="AS IT CAME")
        mti, got = await host.ask("1100", sent)
        assert (mti, got[39], got[59]) == ("1110", "000", "AS IT CAME")
        txn = scene.world.decisions[0].transaction
        assert (txn.mcc, txn.country, txn.entry_mode, txn.transaction_id) == ("5411", "DE", "chip", transaction_id())
        assert await host.code("1101", sent | {4: "000000000001"}) == "913"
        original = {11: "000900", 56: "110000000126010113000006123456"}
        assert await host.code("1420", sent | original) == "400"
        assert await host.code("1100", sent | {11: "000003", 4: "000000020000"}) == "116"
        for code in ("801", "831", "802"):
            assert await host.ask("1804", {7: "0101120000", 11: "000077", 24: code}) == (
                "1814",
                {7: "0101120000", 11: "000077", 24: code, 39: "800"},
            )

    at_the_gateway(play, "1993-ascii")


def test_a_reversal_in_part_of_1993_is_one_by_its_function_code_and_its_amount_is_what_stays() -> None:
    sent = fields_of(f12="260101130000", f13=None, f18=None, f22="510101511344", f25=None, f43=None)

    def reversal(stan: str, function: str, **changes: str) -> dict[int, str]:
        return sent | {11: stan, 24: function, 56: "110000000126010113000006123456"} | {int(name[1:]): value for name, value in changes.items()}

    async def play(scene: Scene, host: Host) -> None:
        was = f"{1_000:012}{0:012}"
        assert await host.code("1100", sent) == "000"
        assert await host.code("1420", reversal("000900", "401", f4=f"{300:012}")) == "904", "of how much is not said"
        assert await host.code("1420", reversal("000901", "401", f4=f"{1_000:012}", f30=was)) == "904", "nothing of it"
        assert await host.code("1420", reversal("000902", "401", f4=f"{300:012}", f30=was)) == "400"
        assert await host.code("1220", reversal("000903", "202", f4=f"{100:012}", f71="00000001", f72="2")) == "000"
        assert await host.code("1420", reversal("000904", "400", f30=was, f95="CARD ISSUER REFERENCE")) == "400", "whatever the issuer calls it"
        made = scene.world.bus.records(CLEARINGS)
        assert [(c.kind, c.amount_minor) for c in made] == [("reversal", 700), ("capture", 100), ("reversal", 0)]  # type: ignore[attr-defined]

    at_the_gateway(play, "1993-ascii")


def test_every_refusal_has_its_row_in_the_one_table() -> None:
    moves = {"not_confirmed", "not_yet_expired", "not_resolved"}  # of the books, never of a host
    assert {str(refusal) for refusal in (*Refusal, *NotCleared)} - moves <= FIELD_39.keys()
    assert all((len(code.v1987), len(code.v1993)) == (2, 3) for code in FIELD_39.values())


IN_PART = {"f4": "000000012000", "f60": f"{0:011}1"}


def test_less_than_was_asked_for_is_approved_where_the_message_says_so() -> None:
    async def play(scene: Scene, host: Host) -> None:
        _, got = await host.ask("0100", fields_of(**IN_PART))
        assert (got[39], got[4], got[54], len(got[38])) == ("10", "000000010000", "0057978D000000012000", 6)
        assert (scene.world.decisions[0].held_minor, scene.world.decisions[0].approved_minor) == (10_000, 10_000)
        assert (await host.ask("0101", fields_of(**IN_PART)))[1] == got
        assert await host.code("0100", fields_of(**(IN_PART | {"f11": "000002"}))) == "51"
        assert await host.code("0100", fields_of(f4="000000012000", f11="000003", f60=f"{0:012}")) == "51"
        assert await host.code("0120", about(f4="000000010001", f11="000004")) == "13"
        assert await host.code("0120", about(f4="000000010000", f11="000005")) == "00"

    at_the_gateway(play)


def test_a_machine_pays_out_what_was_asked_or_nothing() -> None:
    async def play(scene: Scene, host: Host) -> None:
        assert await host.code("0100", fields_of(**IN_PART, f3="010000")) == "51"

    at_the_gateway(play)


def test_what_is_approved_in_part_is_said_in_both_currencies_and_may_be_of_an_estimate() -> None:
    async def play(scene: Scene, host: Host) -> None:
        _, got = await host.ask("0100", fields_of(f4="000000014000", f49="840", f6="000000012000", f51="978", f60=f"{0:011}3"))
        assert (got[39], got[4], got[49], got[6], got[51]) == ("10", "000000011666", "840", "000000010000", "978")
        assert got[54] == "0057840D000000014000"

    at_the_gateway(play)


def test_of_1993_the_action_code_is_002_and_element_30_has_the_original_amount() -> None:
    async def play(scene: Scene, host: Host) -> None:
        _, got = await host.ask("1100", fields_of(**IN_PART, f12="260101130000", f13=None, f18=None, f22="510101511344", f25=None, f43=None))
        assert (got[39], got[4], got[30]) == ("002", "000000010000", f"{12_000:012}{0:012}")
        assert 54 not in got

    at_the_gateway(play, dialect="1993-ascii")


ONLINE = {"f22": "811", "f60": f"{0:08}070{0}"}
AUTHENTICATED = ONLINE | {"f60": f"{0:08}050{0}"}


@pytest.mark.parametrize(("pan", "code"), [(PAN, "1A"), ("5555555555554444", "65")])
def test_a_cardholder_is_asked_to_authenticate_by_the_schemes_own_code_and_the_retry_names_its_original(pan: str, code: str) -> None:
    async def play(scene: Scene, host: Host) -> None:
        scene.world.ask_for_authentication()
        _, got = await host.ask("0100", fields_of(**ONLINE, f2=pan))
        assert got[39] == code
        assert 38 not in got
        assert await host.code("0100", about(**AUTHENTICATED, f2=pan, f4="000000001001")) == "12"
        assert await host.code("0100", about(**AUTHENTICATED, f2=pan)) == "00"
        assert await host.code("0101", about(**AUTHENTICATED, f2=pan)) == "00"
        assert await host.code("0100", about(**AUTHENTICATED, f2=pan, f11="000901")) == "94"
        assert [d.transaction.step_up_of for d in scene.world.decisions] == [None, transaction_id()]
        assert await host.code("0120", about("000900", f11="000902")) == "00", "and is captured as any other"

    at_the_gateway(play)


def test_a_retry_without_authentication_is_declined_and_what_came_authenticated_is_asked_for_nothing() -> None:
    async def play(scene: Scene, host: Host) -> None:
        scene.world.ask_for_authentication()
        assert await host.code("0100", fields_of(**ONLINE)) == "1A"
        assert await host.code("0100", about(**ONLINE)) == "63"
        assert await host.code("0100", fields_of(**AUTHENTICATED, f11="000007")) == "00"
        assert await host.code("0100", fields_of(f11="000008")) == "59"

    at_the_gateway(play)
