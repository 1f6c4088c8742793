"""Controls of cards and accounts: set by HTTP, obeyed by both doors and every kind of payment, each refusal by its own name."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from models.answer import FIELD_39
from models.controls import Window
from models.hold import EMPTY, Book, Step, Terms, UnknownAccount, cleared, confirm, controls_known, place, standing, terms_of, void
from models.refusal import DECLINES
from schemas.avro import decode
from schemas.controls import Controls, Limit, Period
from schemas.hold import Clearing, ClearingKind
from schemas.identity import keyed_token
from schemas.topics import ACCOUNT_CONTROLS
from streams.authorize.keys import Scope
from streams.rebuild import held
from tests.iso8583.host import Host as IsoHost
from tests.iso8583.host import Scene, at_the_gateway, fields_of
from tests.walk.test_http import KEY, NOON, Host, a_request, at_the_door
from tests.world import a_transaction

DAY = 86_400_000
CARD = keyed_token(KEY, "k1", "crd", "4111111111111111")
ACCOUNT, OF_CARD = "/v1/accounts/a1/controls", f"/v1/cards/{CARD}/controls"


async def put(host: Host, path: str = ACCOUNT, **sent: Any) -> tuple[int, Any]:
    """Sets controls with a key that may."""
    host.carry("bank", Scope.RESTRICT, Scope.READ, Scope.AUTHORIZE, Scope.CAPTURE)
    status, answer, _ = await host.ask("PUT", path, json.dumps(sent).encode())
    return status, answer


def reason_of(host: Host) -> str | None:
    """Why the newest decision declined, if it did."""
    reasons = host.world.decisions[-1].reasons
    return reasons[0].code if reasons else None


ON_LIMIT = {"period": "day", "amount_minor": 1_500}
CONTROLS = Controls(
    controls_id="ctl", account_id="a1", limits=(Limit(period=Period.DAY, amount_minor=1_500),), counted_since_ms=NOON - DAY, at_ms=NOON - DAY
)


@pytest.mark.parametrize(
    ("path", "sent", "payment", "reason", "code"),
    [
        (ACCOUNT, {"status": "frozen"}, {}, "account_frozen", "62"),
        (ACCOUNT, {"status": "dormant"}, {}, "account_dormant", "62"),
        (ACCOUNT, {"status": "closed"}, {"amount_minor": 0}, "account_closed", "57"),
        (OF_CARD, {"account_id": "a1", "status": "frozen"}, {}, "card_frozen", "62"),
        (OF_CARD, {"account_id": "a1", "status": "frozen"}, {"amount_minor": 0}, "card_frozen", "62"),
        (OF_CARD, {"account_id": "a1", "status": "frozen"}, {"card_number": "4222222222222220"}, None, "00"),
        (OF_CARD, {"account_id": "a1", "ecommerce": False}, {}, "ecommerce_off", "57"),
        (OF_CARD, {"account_id": "a1", "ecommerce": False}, {"kind": "card_present"}, None, "00"),
        (ACCOUNT, {"atm": False}, {"kind": "atm"}, "atm_off", "57"),
        (ACCOUNT, {"contactless": False}, {"kind": "card_present", "entry_mode": "contactless"}, "contactless_off", "57"),
        (ACCOUNT, {"categories_blocked": ["7800-7999"]}, {"mcc": "7995"}, "category_blocked", "57"),
        (ACCOUNT, {"categories_blocked": ["7800-7999"]}, {"mcc": "5411"}, None, "00"),
        (ACCOUNT, {"categories_allowed": ["5411"]}, {}, "category_blocked", "57"),
        (ACCOUNT, {"countries_allowed": ["DE"]}, {"country": "FR"}, "country_blocked", "62"),
        (ACCOUNT, {"countries_blocked": ["FR"]}, {"country": "FR"}, "country_blocked", "62"),
        (ACCOUNT, {"limits": [{"period": "transaction", "amount_minor": 999}]}, {}, "transaction_limit", "61"),
        (ACCOUNT, {"limits": [{"period": "transaction", "amount_minor": 1_000}]}, {}, None, "00"),
        (ACCOUNT, {"limits": [{"period": "day", "count": 0}]}, {}, "day_count", "65"),
        (ACCOUNT, {"limits": [{"period": "week", "amount_minor": 1}]}, {}, "week_limit", "61"),
        (ACCOUNT, {"limits": [{"period": "month", "amount_minor": 1}]}, {"amount_minor": 0}, None, "00"),
        (ACCOUNT, {"status": "frozen"}, {"kind": "refund"}, None, "00"),
        (ACCOUNT, {"status": "closed"}, {"kind": "refund"}, "account_closed", "57"),
        (OF_CARD, {"account_id": "a1", "status": "closed"}, {"kind": "refund"}, None, "00"),
    ],
)
def test_what_is_forbidden_is_declined_by_its_own_name(path: str, sent: Any, payment: Any, reason: str | None, code: str) -> None:
    async def play(host: Host) -> None:
        assert (await put(host, path, **sent))[0] == 200
        status, answer, _ = await host.authorize(**payment)
        assert (status, answer["response_code"], reason_of(host)) == (200, code, reason)

    at_the_door(play)


def test_limits_count_what_is_held_until_the_day_is_over() -> None:
    async def play(host: Host) -> None:
        await put(host, limits=[ON_LIMIT, {"period": "week", "count": 3}])
        got = []
        for number, (amount, days) in enumerate([(1_000, 0), (501, 0), (500, 0), (1, 0), (1_500, 1), (1, 1), (1, 2), (1, 4)]):
            host.world.now_ms = NOON + days * DAY  # 2026-01-01 is a Thursday
            await host.authorize(transaction_id=f"t{number}", amount_minor=amount, kind="card_present", at_ms=host.world.now_ms)
            got.append(reason_of(host))
            if got[-1] is None:
                followed(host)
        assert got == [None, "day_limit", None, "day_limit", None, "day_limit", "week_count", None]

    at_the_door(play)


def test_a_hold_that_the_log_has_with_the_time_of_another_decider_is_counted_in_the_day_of_that() -> None:
    midnight, book = NOON + DAY // 2, controls_known(EMPTY, CONTROLS)
    late = place(book, "h1", "t1", 1_000, "EUR", midnight - 1, 30_000, midnight + DAY, UnknownAccount.HOLD)
    assert isinstance(late, Step)
    book = confirm(late.book, Terms("h1", "t1", 1_000, "EUR", midnight + DAY, placed_at_ms=midnight + 1)).book
    assert book.usage[0].windows[0] == Window(midnight, 1_000, 1)
    book = void(book, "h1", midnight + 2).book  # type: ignore[union-attr]
    assert book.usage[0].windows[0] == Window(midnight, 0, 0)


def test_a_lapsed_hold_stands_in_the_way_of_nobody_who_is_to_authenticate() -> None:
    book, txn = controls_known(EMPTY, CONTROLS), a_transaction("t2", amount_minor=1_000)
    lapsing = place(book, "h1", "t1", 1_000, "EUR", NOON, 30_000, NOON + DAY, UnknownAccount.HOLD)
    assert isinstance(lapsing, Step)
    assert standing(lapsing.book, "EUR", UnknownAccount.HOLD, txn, NOON + 29_999) == "day_limit"
    assert standing(lapsing.book, "EUR", UnknownAccount.HOLD, txn, NOON + 30_000) is None


def test_an_increment_is_one_transaction_with_what_it_raises() -> None:
    async def raised(host: Host, name: str, amount_minor: int) -> str | None:
        await host.step("increment", **a_request(transaction_id=name, kind="card_present", amount_minor=amount_minor))
        return reason_of(host)

    async def play(host: Host) -> None:
        await put(host, limits=[{"period": "transaction", "amount_minor": 1_500}, {"period": "day", "count": 1}])
        await host.authorize(kind="card_present")
        assert await raised(host, "i1", 501) == "transaction_limit"
        assert await raised(host, "i2", 500) is None, "the day's one payment is this very one"
        await host.authorize(transaction_id="t2", kind="card_present")
        assert reason_of(host) == "day_count"
        assert await raised(host, "i3", 1) == "transaction_limit", "nor is that of another increment forgotten"

    at_the_door(play)


def test_what_is_given_back_or_expires_is_counted_no_more_also_after_a_rebuild() -> None:
    async def play(host: Host) -> None:
        await put(host, limits=[{"period": "month", "amount_minor": 5_000, "count": 9}])
        for number in range(4):
            await host.authorize(transaction_id=f"t{number}", kind="card_present")
        book = host.world.books.books["a1"]
        assert spent(book) == (4_000, 4)
        for d in host.world.decisions:
            book = confirm(book, terms_of(d)).book
        moves = [("t0", ClearingKind.REVERSAL, 0, True), ("t1", ClearingKind.REVERSAL, 400, True), ("t2", ClearingKind.CAPTURE, 300, True)]
        for name, kind, amount, final in moves:
            clearing = Clearing(
                clearing_id="c", transaction_id=name, account_id="a1", kind=kind, amount_minor=amount, currency="EUR", at_ms=NOON, final=final
            )
            book = cleared(book, clearing).book  # type: ignore[union-attr]
        assert spent(book) == (600 + 300 + 1_000, 3)
        (told,) = [decode(Controls, m.value) for m in host.world.bus.told[ACCOUNT_CONTROLS.name]]
        again = controls_known(EMPTY, told)
        for d in host.world.decisions:
            again = held(again, d, False, ())
        assert spent(again) == (4_000, 4), "the log says it all"

    at_the_door(play)


def followed(host: Host) -> None:
    """The `hold` app confirms the newest hold, which would lapse else."""
    host.world.books.books["a1"] = confirm(host.world.books.books["a1"], terms_of(host.world.decisions[-1])).book


def spent(book: Book) -> tuple[int, int]:
    """What the month has counted."""
    (usage,) = book.usage
    return usage.windows[2].spent_minor, usage.windows[2].count


def test_controls_are_read_as_they_were_put_and_the_newest_stand_whole() -> None:
    async def play(host: Host) -> None:
        status, first = await put(host, OF_CARD, account_id="a1", limits=[ON_LIMIT], atm=False)
        assert (status, first["limits"][0]["amount_minor"], first["atm"], first["at_ms"]) == (200, 1_500, False, NOON)
        assert (await put(host, OF_CARD, account_id="a1", limits=[ON_LIMIT], atm=False))[1] == first
        assert len(host.world.bus.told[ACCOUNT_CONTROLS.name]) == 1, "what says nothing new is not told"
        assert (await host.ask("GET", f"{OF_CARD}?account_id=a1"))[1] == first
        host.world.now_ms += 1_000
        opened = (await put(host, OF_CARD, account_id="a1"))[1]
        host.world.now_ms += 1_000
        assert (await put(host, OF_CARD, account_id="a1"))[1] == opened, "nor where nothing is counted"
        assert opened["atm"] is True
        again = (await put(host, OF_CARD, account_id="a1", limits=[ON_LIMIT]))[1]
        assert again["counted_since_ms"] == again["at_ms"] == host.world.now_ms
        assert (await host.ask("GET", ACCOUNT))[0] == 404

    at_the_door(play)


@pytest.mark.parametrize(
    ("query", "param", "code"),
    [
        ("account_id=a1&freeze=1", "freeze", "unknown_field"),
        ("account_id=a1&account_id=a2", "account_id", "invalid_field"),
        ("account_id=", "account_id", "invalid_field"),
        ("", "account_id", "missing_field"),
    ],
)
def test_what_a_query_for_controls_says_is_read_whole(query: str, param: str, code: str) -> None:
    async def play(host: Host) -> None:
        status, said, _ = await host.ask("GET", f"{OF_CARD}?{query}")
        assert (status, said["error"]["param"], said["error"]["code"]) == (422, param, code)

    at_the_door(play)


@pytest.mark.parametrize(
    ("path", "sent", "param", "code"),
    [
        (OF_CARD, {}, "account_id", "missing_field"),
        ("/v1/cards/4111111111111111/controls", {"account_id": "a1"}, "token", "card_number"),
        (ACCOUNT, {"account_id": "a2"}, "account_id", "invalid_field"),
        (ACCOUNT, {"categories_blocked": ["54"]}, "categories_blocked[0]", "invalid_field"),
        (ACCOUNT, {"categories_allowed": ["5411-5411", "7999-7800"]}, "categories_allowed[1]", "invalid_field"),
        (ACCOUNT, {"limits": [{"period": "year"}]}, "limits[0].period", "invalid_field"),
        (ACCOUNT, {"limits": [{"period": "day", "count": 1}, {"period": "day"}]}, "limits[1]", "invalid_field"),
        (ACCOUNT, {"limits": [{"period": "transaction", "count": 3}]}, "limits[0]", "invalid_field"),
        (ACCOUNT, {"countries_blocked": ["DE"] * 65}, "countries_blocked", "invalid_field"),
        (ACCOUNT, {"freeze": True}, "freeze", "unknown_field"),
    ],
)
def test_controls_that_cannot_be_are_refused_by_the_field(path: str, sent: Any, param: str, code: str) -> None:
    async def play(host: Host) -> None:
        status, error = await put(host, path, **sent)
        assert (status, error["error"]["param"], error["error"]["code"]) == (422, param, code)

    at_the_door(play)


def test_controls_put_at_the_same_moment_come_into_force_one_after_the_other() -> None:
    async def play(host: Host) -> None:
        told = host.world.bus.tell

        def slow(*args: Any) -> Any:
            return asyncio.ensure_future(asyncio.sleep(0.01)) if told(*args) else None

        host.world.world.bus.tell = slow  # type: ignore[method-assign, assignment]
        answers = [answer for _, answer in await asyncio.gather(*(put(host, **sent) for sent in ({"status": "frozen"}, {"atm": False})))]
        assert len({answer["at_ms"] for answer in answers}) == 2
        (in_force,) = host.world.books.books["a1"].controls
        assert in_force == host.world.bus.records(ACCOUNT_CONTROLS)[-1]
        assert in_force.at_ms == max(answer["at_ms"] for answer in answers)

    at_the_door(play)


@pytest.mark.parametrize("account_id", ["a%41", "4111111111111111"])
def test_an_account_is_controlled_by_the_very_id_that_it_pays_by(account_id: str) -> None:
    async def play(host: Host) -> None:
        for each in (account_id, "aA"):
            host.world.know(each)
        assert (await put(host, f"/v1/accounts/{account_id}/controls", status="frozen"))[1]["account_id"] == account_id
        assert (await host.authorize(account_id=account_id))[1]["response_code"] == "62"
        assert (await host.authorize(transaction_id="t2", account_id="aA"))[1]["outcome"] == "approve"

    at_the_door(play)


def test_a_log_that_does_not_answer_leaves_controls_as_they_were() -> None:
    async def play(host: Host) -> None:
        host.world.bus.down = True
        assert (await put(host, status="frozen"))[0] == 503
        host.world.bus.down = False
        assert (await host.authorize())[1]["outcome"] == "approve"

    at_the_door(play)


def test_the_iso_8583_door_obeys_them_too() -> None:
    async def play(scene: Scene, host: IsoHost) -> None:
        limit = Controls(controls_id="ctl_1", account_id="a1", limits=(), atm=False, counted_since_ms=0, at_ms=1)
        scene.world.books.books["a1"] = controls_known(scene.world.books.books["a1"], limit)
        assert await host.code("0100", fields_of(f3="010000")) == "57"
        assert await host.code("0100", fields_of(f11="000002")) == "00"

    at_the_gateway(play)


def test_every_decline_has_its_row_in_the_one_table() -> None:
    assert {str(refusal) for refusal in DECLINES} <= FIELD_39.keys()
