"""The sandbox: each test card gets at both doors what its row says, by the walk of every payment; and no other system obeys one."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from models.answer import FIELD_39
from models.sandbox import CARDS, PARTIAL, SANDBOX, STEP_UPS, UNAUTHENTICATED, Card, Effect, cards_by_token
from schemas.errors import SettingsError
from schemas.transaction import TransactionKind, is_card_number
from streams import forced, forward
from streams import stand_in as standing
from streams.folder import is_sandbox
from streams.forced import ForcedStandIn, force
from streams.sandbox import http_says, its_settings
from streams.settings import Settings
from streams.spool import Spool
from streams.stack import running
from tests.iso8583.fuzz import warm_up
from tests.iso8583.host import Host as IsoHost
from tests.iso8583.host import Scene, at_the_gateway, fields_of
from tests.walk.test_http import KEY, Host, at_the_door
from tests.walk.test_stand_in import POLICY, told_all
from tests.world import NOON, TestWorld

DEADLINE_MS, LATE_S = 1_500, 4.0
DECIDED = [card for card in CARDS if card.outcome is not None]
HOLDING = ("approve", "review")
TAKES_PART = "000000000001"
"""Element 60 of a host that can take an approval in part."""


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forward, "PAUSE_S", 0.005)
    monkeypatch.setattr(forced, "LATE_S", LATE_S)
    warm_up()  # what compiles meanwhile is answered by the stand-in, as at a service that is not ready


def a_sandbox(test: TestWorld, folder: Path) -> None:
    """Makes a sandbox of a World; its account has plenty."""
    cards = cards_by_token(KEY, "k1")
    force(test.world, cards)
    stand_in = ForcedStandIn(POLICY, *Spool.opened(folder, lambda found: standing._needed(found, NOON // 86_400_000)))
    stand_in.cards = cards
    test.world.stand_in = stand_in
    test.know(balance_minor=10_000_000)


async def closed(test: TestWorld) -> None:
    """Lets the stand-in's disk go."""
    assert test.world.stand_in is not None
    await test.world.stand_in.close()


def said(status: int, answer: Any) -> str:
    """An answer of HTTP as the table says it."""
    if status != 200:
        return f"{status} {answer['error']['code']}"
    in_part = ", in part" if answer["outcome"] == "approve" and answer["approved_minor"] < 1_000 else ""
    asks = f", {answer['action']}" if answer["action"] else ""
    return f"200 {answer['outcome']}, {answer['reason_category']}{', stand-in' if answer['stand_in'] else ''}{in_part}{asks}"


def code_of(answer: Any) -> str:
    """Field 39 in it."""
    return str((answer.get("error") or answer)["response_code"])


def test_the_numbers_are_card_numbers_each_its_own_that_carry_field_39() -> None:
    assert len({card.number for card in CARDS}) == len(CARDS)
    for card in CARDS:
        assert is_card_number(card.number)
        assert card.number[8:10] == FIELD_39[card.answer].v1987.replace("1A", "18")


def test_every_outcome_every_decline_and_every_word_of_the_stand_in_has_a_card() -> None:
    from models import stand_in
    from models.refusal import DECLINES
    from schemas.decision import Outcome

    forcing = {card.answer for card in CARDS}
    nobody = {"deadline", "log_unavailable", "memory_unavailable"}
    assert {PARTIAL, *STEP_UPS, UNAUTHENTICATED, *map(str, Outcome), *map(str, DECLINES), *map(str, stand_in.Refusal), *nobody} == forcing


def test_each_card_gets_over_http_what_its_row_says_once_and_on_the_log(tmp_path: Path) -> None:
    async def play(host: Host) -> None:
        a_sandbox(host.world, tmp_path)
        for card in CARDS:
            sent = {"transaction_id": card.number[6:], "card_number": card.number, "partial_allowed": card.answer == PARTIAL}
            status, answer, content = await host.authorize(**sent)
            assert said(status, answer) == http_says(card), card
            assert code_of(answer) == FIELD_39[card.answer].v1987, card
            if card.outcome is not None:
                assert (answer["hold_id"] is not None) == (card.outcome in HOLDING), card
                assert (await host.authorize(**sent))[2] == content, "a repeat gets the same bytes"
                assert (await host.authorize(**sent, amount_minor=1_001))[0] == 409
        await told_all(host)
        found = {decision.transaction_id: decision for decision in host.world.decisions}
        assert len(found) == len(host.world.decisions), "once each"
        assert {card.number[6:] for card in DECIDED} <= found.keys()
        for card in DECIDED:
            decision = found[card.number[6:]]
            assert decision.outcome == card.outcome
            assert SANDBOX in decision.degradations
            assert decision.vector, "it went by the whole walk"
        held = {hold.transaction_id: hold.amount_minor for hold in host.world.books.books["a1"].holds}
        judged = {card.number[6:] for card in CARDS if card.effect is Effect.VERDICT and card.outcome in HOLDING}
        others = {card.number[6:] for card in CARDS if card.effect is not Effect.VERDICT}  # late ones, and what the hold app reads in the log
        in_part = {card.number[6:]: 500 for card in CARDS if card.answer == PARTIAL}
        assert {name: amount for name, amount in held.items() if name not in others} == dict.fromkeys(judged, 1_000) | in_part
        await closed(host.world)

    at_the_door(play, DEADLINE_MS)


def test_a_late_card_is_answered_at_the_deadline_and_its_decision_stands_afterwards(tmp_path: Path) -> None:
    (card,) = [card for card in CARDS if card.effect is Effect.LATE]

    async def play(host: Host) -> None:
        a_sandbox(host.world, tmp_path)
        began = asyncio.get_running_loop().time()
        status, answer, _ = await host.authorize(card_number=card.number)
        assert (status, answer["error"]["code"]) == (503, "deadline")
        assert asyncio.get_running_loop().time() - began < LATE_S, "at the deadline, not when it is decided"
        async with asyncio.timeout(10):
            while not host.world.decisions:
                await asyncio.sleep(0.01)
        status, answer, _ = await host.authorize(card_number=card.number)
        assert (status, answer["outcome"], answer["stand_in"]) == (200, "approve", False)
        assert len(host.world.decisions) == 1
        await closed(host.world)

    at_the_door(play, DEADLINE_MS)


@pytest.mark.parametrize("number", [card.number for card in CARDS if card.answer in STEP_UPS])
def test_who_is_asked_to_authenticate_is_approved_once_that_was_done(number: str, tmp_path: Path) -> None:
    async def play(host: Host) -> None:
        a_sandbox(host.world, tmp_path)
        _, first, _ = await host.authorize(card_number=number)
        assert (first["outcome"], first["action"], first["hold_id"]) == ("decline", "step_up", None)
        _, retry, _ = await host.authorize(card_number=number, transaction_id="t2", step_up_of="t1", three_ds_result="match")
        assert (retry["outcome"], retry["action"], retry["held_minor"]) == ("approve", None, 1_000)
        await host.authorize(card_number=number, transaction_id="t3")
        _, failed, _ = await host.authorize(card_number=number, transaction_id="t4", step_up_of="t3", three_ds_result="no_match")
        assert (failed["outcome"], failed["action"], failed["response_code"]) == ("decline", None, "63")
        await closed(host.world)

    at_the_door(play, DEADLINE_MS)


@pytest.mark.parametrize("dialect", ["1987-ascii", "1993-ascii"])
def test_each_card_gets_over_iso_8583_what_its_row_says(dialect: str, tmp_path: Path) -> None:
    v1993 = dialect.startswith("1993")

    async def play(scene: Scene, host: IsoHost) -> None:
        a_sandbox(scene.world, tmp_path)
        for number, card in enumerate(CARDS, 1):
            fields = fields_of(f2=card.number, f11=f"{number:06}", f37=f"{number:012}", f60=TAKES_PART if card.answer == PARTIAL else None)
            if v1993:
                fields = as_1993(fields)
            mti = "1100" if v1993 else "0100"
            expected = FIELD_39[card.answer].v1993 if v1993 else FIELD_39[card.answer].v1987
            assert await host.code(mti, fields) == expected, card
            if card.outcome is not None:
                assert await host.code("1101" if v1993 else "0101", fields) == expected, "a repeat"
        await closed(scene.world)

    at_the_gateway(play, dialect, deadline_ms=DEADLINE_MS)


def as_1993(fields: dict[int, str]) -> dict[int, str]:
    """A purchase as 1993 has it."""
    return {n: v for n, v in fields.items() if n not in (13, 18, 25)} | {12: "260101130000", 22: "510101511100", 26: "5411"}


def test_no_other_system_obeys_a_test_card() -> None:
    async def play(host: Host) -> None:
        for place, card in enumerate(card for card in CARDS if card.answer != "approve"):
            sent = {"transaction_id": f"t{place}", "card_number": card.number, "account_id": f"own{place}", "merchant_id": f"m{place}"}
            host.world.know(f"own{place}")
            status, answer, _ = await host.authorize(**sent)
            assert (status, answer["outcome"], answer["response_code"]) == (200, "approve", "00"), card
        assert all(SANDBOX not in decision.degradations for decision in host.world.decisions)

    at_the_door(play)


def test_an_ordinary_card_in_a_sandbox_is_judged_and_marked(tmp_path: Path) -> None:
    async def play(host: Host) -> None:
        a_sandbox(host.world, tmp_path)
        status, answer, _ = await host.authorize()
        assert (status, answer["outcome"]) == (200, "approve")
        host.world.know("poor", 10)
        _, poor, _ = await host.authorize(transaction_id="t2", account_id="poor", card_number=CARDS[0].number)
        assert (poor["outcome"], poor["response_code"]) == ("decline", "51"), "what a card approves an account must still pay"
        assert [decision.degradations for decision in host.world.decisions] == [(SANDBOX,), (SANDBOX,)]
        (in_part,) = [card for card in CARDS if card.answer == PARTIAL]
        _, whole, _ = await host.authorize(transaction_id="t4", card_number=in_part.number)
        assert (whole["outcome"], whole["response_code"]) == ("decline", "51"), "a host that takes no part gets all or nothing"
        (review,) = [card for card in CARDS if card.answer == "review"]
        _, refund, _ = await host.authorize(transaction_id="t3", kind=str(TransactionKind.REFUND), card_number=review.number)
        assert (refund["outcome"], refund["hold_id"]) == ("review", None)
        await closed(host.world)

    at_the_door(play)


def test_test_cards_decide_with_no_real_kafka_and_in_no_folder_but_a_sandboxs(tmp_path: Path) -> None:
    own = its_settings(Settings(data_dir=tmp_path), tmp_path / "sandbox")
    assert is_sandbox(own)
    assert not is_sandbox(own.changed(sandbox="off"))
    with pytest.raises(SettingsError, match="no real Kafka"), running(own, broker_name="real"):
        pass
    with pytest.raises(SettingsError, match="folder of no sandbox"), running(own.changed(data_dir=tmp_path / "other")):
        pass
    (tmp_path / "bank").mkdir()
    (tmp_path / "bank" / "system.json").write_text("{}")
    with pytest.raises(SettingsError, match="holds something that is no sandbox"):
        its_settings(Settings(), tmp_path / "bank")
    assert its_settings(Settings(), tmp_path / "sandbox").token_key == own.token_key, "the next start finds its own"


def test_the_cards_of_a_sandbox_are_those_of_its_own_token_key() -> None:
    mine, others = cards_by_token(b"a" * 32, "k1"), cards_by_token(b"b" * 32, "k1")
    assert not mine.keys() & others.keys()
    assert all(isinstance(card, Card) for card in mine.values())
