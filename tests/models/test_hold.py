"""Proves the legal moves of holds: by tables that read like the domain, and by a machine that tries everything."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from models.hold import (
    EMPTY,
    FINAL,
    PARTS_MAX,
    POSTINGS_MAX,
    Book,
    Cause,
    OpenHold,
    Refusal,
    Step,
    Terms,
    UnknownAccount,
    confirm,
    expire,
    place,
    post,
    release,
    state_known,
    told,
    untold,
    void,
)
from schemas.account import AccountState, AccountStatus
from schemas.hold import HoldState

DAY_MS = 86_400_000
LEASE_MS = 10_000
LIFE_MS = 7 * DAY_MS
_UNITS = {"d": DAY_MS, "s": 1000, "ms": 1}


class Desk:
    """One account, worked line by line."""

    def __init__(self) -> None:
        self.book, self.now_ms = EMPTY, 0

    def says(self, line: str) -> str:
        """What the line leads to: a refusal's name, or what it says of the hold."""
        verb, *args = line.split()
        got = getattr(self, verb)(*args)
        if isinstance(got, Step):
            self.book = got.book
            return str(got.hold.state)
        if isinstance(got, Book):
            self.book = got
            return "ok"
        return str(got)

    def account(self, balance: str, *more: str) -> Book:
        said = dict(word.split("=") for word in more)
        return state_known(
            self.book,
            AccountState(
                account_id="A",
                currency=said.get("currency", "EUR"),
                balance_minor=int(balance),
                credit_limit_minor=int(said.get("limit", 0)),
                status=AccountStatus(said.get("status", "open")),
                as_of_ms=int(said.get("as_of", self.now_ms - 1)),
            ),
        )

    def hold(self, name: str, amount: str, currency: str = "EUR", unknown: str = "decline") -> Step | Refusal:
        return place(self.book, name, f"T{name}", int(amount), currency, self.now_ms, LEASE_MS, self.now_ms + LIFE_MS, UnknownAccount(unknown))

    def in_part(self, name: str, amount: str, least: str, tolerance: str = "0", unknown: str = "decline") -> Step | Refusal:
        terms = (self.now_ms, LEASE_MS, self.now_ms + LIFE_MS, UnknownAccount(unknown), int(tolerance))
        return place(self.book, name, f"T{name}", int(amount), "EUR", *terms, least_minor=int(least))

    def confirm(self, name: str, amount: str, currency: str = "EUR", tolerance: str = "0") -> Step:
        return confirm(self.book, Terms(name, f"T{name}", int(amount), currency, self.now_ms + LIFE_MS, int(tolerance)))

    def post(self, name: str, amount: str, currency: str = "EUR") -> Step | Refusal:
        return post(self.book, name, int(amount), currency, self.now_ms)

    def part(self, name: str, amount: str, cause: str = "") -> Step | Refusal:
        return post(self.book, name, int(amount), "EUR", self.now_ms, Cause(cause), final=False)

    def void(self, name: str, amount: str = "0") -> Step | Refusal:
        return void(self.book, name, self.now_ms, amount_minor=int(amount))

    def left(self, name: str) -> str:
        hold = self.book.hold(name)
        return "none" if hold is None else str(hold.left_minor)

    def expire(self, name: str) -> Step | Refusal:
        return expire(self.book, name, self.now_ms)

    def release(self, name: str) -> Book | Refusal:
        return release(self.book, name)

    def tick(self, span: str) -> str:
        unit = span.lstrip("0123456789")
        self.now_ms += int(span.removesuffix(unit)) * _UNITS[unit]
        return "ok"

    def available(self) -> str:
        return str(self.book.available_minor(self.now_ms))

    def version(self) -> str:
        return str(self.book.version)


SCENARIOS = {
    "a hold takes what is available and a post takes the balance": """
        account 30000
        hold H1 10000           -> provisional
        available               -> 20000
        confirm H1 10000        -> confirmed
        available               -> 20000
        post H1 10000           -> posted
        available               -> 20000
    """,
    "where less is there than was asked for, what there is may be held, and captures take that": """
        account 10000
        in_part H1 12000 1      -> provisional
        left H1                 -> 10000
        available               -> 0
        in_part H2 1 1          -> insufficient_funds
        confirm H1 10000        -> confirmed
        part H1 4000            -> confirmed
        post H1 6001            -> exceeds_hold
        post H1 6000            -> posted
        available               -> 0
    """,
    "what can be held whole is, and what may not be held in part is not": """
        account 10000
        in_part H1 9000 1       -> provisional
        left H1                 -> 9000
        hold H2 1001            -> insufficient_funds
        in_part H2 1001 0       -> insufficient_funds
        in_part H2 5000 1001    -> insufficient_funds
        in_part H2 5000 1000    -> provisional
        left H2                 -> 1000
    """,
    "a part goes with the credit limit, and never beyond it": """
        account 100 limit=400
        in_part H1 600 1        -> provisional
        left H1                 -> 500
        account 0 as_of=5
        available               -> -500
        in_part H2 600 1        -> insufficient_funds
    """,
    "a part has no tolerance: there is no more money": """
        account 10000
        in_part H1 12000 1 2000 -> provisional
        confirm H1 10000        -> confirmed
        post H1 10001           -> exceeds_hold
        post H1 10000           -> posted
    """,
    "a repeat finds its part, whatever has come since; one that has lapsed is measured anew": """
        account 10000
        in_part H1 12000 1      -> provisional
        account 20000 as_of=5
        in_part H1 12000 1      -> provisional
        left H1                 -> 10000
        tick 10s
        in_part H1 12000 1      -> provisional
        left H1                 -> 12000
    """,
    "of an account that nobody described nothing is known to be less; one that may not pay does not in part": """
        in_part H1 12000 1 0 hold -> provisional
        left H1                 -> 12000
        account 100 status=frozen
        in_part H2 12000 1      -> account_frozen
    """,
    "a hold expires at exactly seven days": """
        account 30000
        hold H1 10000
        confirm H1 10000
        tick 7d
        post H1 1               -> late_capture
        void H1                 -> already_expired
        available               -> 30000
        expire H1               -> expired
        expire H1               -> already_expired
        post H1 1               -> late_capture
    """,
    "a millisecond before seven days it is still there": """
        account 30000
        hold H1 10000
        tick 0ms
        confirm H1 10000
        tick 604799999ms
        expire H1               -> not_yet_expired
        available               -> 20000
        post H1 1               -> posted
    """,
    "a part may be posted and the rest returns": """
        account 30000
        hold H1 10000
        confirm H1 10000
        post H1 10001           -> exceeds_hold
        post H1 4000            -> posted
        available               -> 26000
        post H1 6000            -> already_posted
    """,
    "parts are taken one by one until nothing is left": """
        account 30000
        confirm H1 10000
        part H1 4000            -> confirmed
        available               -> 20000
        left H1                 -> 6000
        part H1 6001            -> exceeds_hold
        part H1 6000            -> posted
        available               -> 20000
        part H1 1               -> already_posted
    """,
    "the last of several captures returns the rest": """
        account 30000
        confirm H1 10000
        part H1 4000            -> confirmed
        post H1 1000            -> posted
        available               -> 25000
    """,
    "a part is given back and the rest can still be taken": """
        account 30000
        confirm H1 10000
        void H1 3000            -> confirmed
        available               -> 23000
        void H1 7001            -> exceeds_hold
        part H1 5000            -> confirmed
        void H1 2000            -> voided
        available               -> 25000
    """,
    "a hold whose parts were taken expires for what is left": """
        account 30000
        confirm H1 10000
        part H1 4000
        tick 7d
        part H1 1               -> late_capture
        expire H1               -> expired
        available               -> 26000
    """,
    "a tip may be taken above the hold, as far as the tolerance goes and once": """
        account 10000
        confirm H1 5000 EUR 1000
        part H1 2000            -> confirmed
        post H1 4001            -> exceeds_hold
        post H1 4000            -> posted
        available               -> 4000
    """,
    "of the tolerance for tips the share goes that was given back": """
        account 30000
        confirm H1 10000 EUR 2000
        void H1 9000            -> confirmed
        post H1 1201            -> exceeds_hold
        post H1 1200            -> posted
        available               -> 28800
    """,
    "a clearing after the hold's end is late, whatever it takes": """
        account 10000
        confirm H1 5000
        tick 7d
        post H1 5000            -> late_capture
        expire H1               -> expired
        post H1 5000            -> late_capture
        void H1                 -> already_expired
    """,
    "posting nothing returns everything": """
        account 30000
        hold H1 10000
        confirm H1 10000
        post H1 0               -> posted
        available               -> 30000
    """,
    "a voided hold returns everything once": """
        account 30000
        hold H1 10000
        confirm H1 10000
        void H1                 -> voided
        available               -> 30000
        void H1                 -> already_voided
        post H1 1               -> already_voided
        expire H1               -> already_voided
    """,
    "a repeat finds the same hold and changes nothing": """
        account 10000
        hold H1 10000           -> provisional
        version                 -> 2
        hold H1 10000           -> provisional
        hold H1 99999           -> provisional
        version                 -> 2
        confirm H1 10000        -> confirmed
        confirm H1 10000        -> confirmed
        hold H1 10000           -> confirmed
        version                 -> 3
    """,
    "an untold hold lapses by itself, and a retry of it asks for the funds again": """
        account 10000
        hold H1 10000           -> provisional
        tick 9999ms
        hold H2 1               -> insufficient_funds
        tick 1ms
        hold H2 1               -> provisional
        hold H1 10000           -> insufficient_funds
        hold H1 9999            -> provisional
        available               -> 0
    """,
    "a decision in the log reinstates a lapsed hold, even past the limit": """
        account 10000
        hold H1 10000
        tick 10s
        hold H2 10000           -> provisional
        confirm H1 10000        -> confirmed
        available               -> -10000
        hold H3 1               -> insufficient_funds
    """,
    "a decision in the log reinstates a hold that memory forgot": """
        account 10000
        confirm H1 10000        -> confirmed
        available               -> 0
        post H1 10000           -> posted
    """,
    "a confirmed hold has no lease": """
        account 10000
        hold H1 10000
        confirm H1 10000
        tick 6d
        available               -> 0
    """,
    "a hold nobody confirmed yet is not resolved": """
        account 10000
        hold H1 10000
        post H1 1               -> not_confirmed
        void H1                 -> not_confirmed
        expire H1               -> not_confirmed
        post H2 1               -> unknown_hold
    """,
    "the credit limit may be spent and not more": """
        account -500 limit=1500
        hold H1 1001            -> insufficient_funds
        hold H1 1000            -> provisional
        available               -> 0
    """,
    "status goes before currency and currency before funds": """
        account 10 status=frozen
        hold H1 1000 USD        -> account_frozen
        account 10 status=closed as_of=1
        hold H1 1000 USD        -> account_closed
        account 10 as_of=2
        hold H1 1000 USD        -> currency_mismatch
        hold H1 1000            -> insufficient_funds
    """,
    "a frozen account's hold can still be posted": """
        account 1000
        hold H1 600
        confirm H1 600
        account 1000 status=frozen as_of=1
        tick 1d
        post H1 600             -> posted
        available               -> 400
    """,
    "an account nobody described is refused, or held without a check, as asked": """
        hold H1 1000            -> unknown_account
        hold H1 1000 USD hold   -> provisional
        confirm H1 1000 USD
        post H1 600             -> hold_currency_mismatch
        post H1 600 USD         -> posted
        available               -> 0
    """,
    "what the books say newly stands and what is older is ignored": """
        account 1000 as_of=5
        account 9999 as_of=5
        account 9999 as_of=4
        available               -> 1000
        version                 -> 1
        account 9999 as_of=6
        available               -> 9999
    """,
    "a capture that the balance said since contains is not taken again": """
        account 1000
        hold H1 600
        confirm H1 600
        account 400 as_of=99999999
        post H1 600             -> posted
        available               -> 400
    """,
    "a balance as of before a capture that comes after it does not contain it": """
        account 1000
        hold H1 600
        confirm H1 600
        tick 10s
        post H1 600             -> posted
        available               -> 400
        account 1000 as_of=9999
        available               -> 400
        account 1000 as_of=9999
        account 400 as_of=10000
        available               -> 400
    """,
    "what was captured of an account before anybody described it is not in a balance as of before": """
        tick 10s
        hold H1 600 EUR hold
        hold H2 100 USD hold
        confirm H1 600
        confirm H2 100 USD
        post H1 600             -> posted
        post H2 100 USD         -> posted
        account 1000 as_of=9999
        available               -> 400
        account 1000 as_of=10000
        available               -> 1000
    """,
    "a resolved hold is released once it was told and an open one never": """
        account 1000
        hold H1 600
        release H1              -> not_resolved
        confirm H1 600
        release H1              -> not_resolved
        void H1
        release H1              -> ok
        release H1              -> ok
        void H1                 -> unknown_hold
    """,
}


@pytest.mark.parametrize("name", SCENARIOS)
def test_the_table(name: str) -> None:
    desk = Desk()
    for line in SCENARIOS[name].strip().splitlines():
        move, _, wanted = line.partition("->")
        got = desk.says(move.strip())
        assert not wanted or got == wanted.strip(), f"{name}: {line.strip()} but got {got}"


class AnyMoves(RuleBasedStateMachine):
    """Every move in any order, against a plain account of who got what. The book takes a trip through bytes after each."""

    names = st.sampled_from(["H1", "H2", "H3", "H4"])
    amounts = st.integers(1, 1000)

    def __init__(self) -> None:
        super().__init__()
        self.book = state_known(EMPTY, AccountState(account_id="A", currency="EUR", balance_minor=1500, credit_limit_minor=500, as_of_ms=0))
        self.now_ms = 1
        self.posted_minor = 0
        self.live: dict[str, tuple[int, int]] = {}  # hold -> amount, the moment from which it counts no more
        self.endings: dict[str, list[HoldState]] = {}
        self.version = self.book.version

    def took(self, got: Step | Refusal) -> OpenHold | None:
        if isinstance(got, Refusal):
            return None
        assert got.book.version == self.book.version + (got.book is not self.book)
        self.book = got.book
        return got.hold

    @rule(name=names, amount=amounts)
    def placing(self, name: str, amount: int) -> None:
        before, free = self.book.hold(name), 2000 - self.posted_minor - self.held()
        if name in self.endings and before is None:
            return  # resolved and released: who calls knows the answer that was given
        hold = self.took(place(self.book, name, f"T{name}", amount, "EUR", self.now_ms, 30, self.now_ms + 100, UnknownAccount.DECLINE))
        if before is None or (before.state is HoldState.PROVISIONAL and not before.live(self.now_ms)):
            assert (hold is not None) == (amount <= free), "what is available is neither understated nor overstated"
            if hold is not None:
                self.live[name] = (amount, self.now_ms + 30)
        else:
            assert hold == before

    @rule(name=names, amount=amounts)
    def confirming(self, name: str, amount: int) -> None:
        before = self.book.hold(name)
        if before is not None:
            amount = before.amount_minor
        if name in self.endings and before is None:
            return
        hold = self.took(confirm(self.book, Terms(name, f"T{name}", amount, "EUR", before.expires_at_ms if before else self.now_ms + 100)))
        assert hold is not None
        assert hold.state is not HoldState.PROVISIONAL
        if hold.state is HoldState.CONFIRMED:
            self.live[name] = (hold.amount_minor, hold.expires_at_ms)

    def ended(self, name: str, hold: OpenHold | None) -> None:
        if hold is not None:
            self.live.pop(name, None)
            self.posted_minor += hold.posted_minor
            self.endings.setdefault(name, []).append(hold.state)

    @rule(name=names, amount=amounts)
    def posting(self, name: str, amount: int) -> None:
        self.ended(name, self.took(post(self.book, name, amount, "EUR", self.now_ms)))

    @rule(name=names)
    def voiding(self, name: str) -> None:
        self.ended(name, self.took(void(self.book, name, self.now_ms)))

    @rule(name=names)
    def expiring(self, name: str) -> None:
        self.ended(name, self.took(expire(self.book, name, self.now_ms)))

    @precondition(lambda self: untold(self.book))
    @rule(data=st.data())
    def releasing(self, data: st.DataObject) -> None:
        after = release(self.book, data.draw(st.sampled_from(untold(self.book))).hold_id)
        assert isinstance(after, Book)
        self.book = after

    @rule(span=st.sampled_from([1, 29, 30, 31, 99, 100]))
    def ticking(self, span: int) -> None:
        self.now_ms += span

    def held(self) -> int:
        return sum(amount for amount, until in self.live.values() if self.now_ms < until)

    @invariant()
    def money_is_conserved(self) -> None:
        assert self.book.balance_minor == 1500 - self.posted_minor
        assert self.book.available_minor(self.now_ms) == 2000 - self.posted_minor - self.held()

    @invariant()
    def a_hold_resolves_exactly_once(self) -> None:
        assert all(len(states) == 1 and states[0] in FINAL for name, states in self.endings.items() if self.book.hold(name))

    @invariant()
    def the_version_counts_changes_and_bytes_say_the_same(self) -> None:
        content = self.book.to_bytes()
        assert int.from_bytes(content[:8], "little") == self.book.version >= self.version
        assert Book.from_bytes(content) == self.book
        self.version = self.book.version


AnyMoves.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
test_whatever_happens_money_is_conserved_and_a_hold_resolves_once = AnyMoves.TestCase


def test_a_hold_has_only_so_many_parts_and_then_it_must_end() -> None:
    book = confirm(EMPTY, Terms("H1", "TH1", 10_000, "EUR", LIFE_MS)).book
    for number in range(PARTS_MAX):
        step = post(book, "H1", 1, "EUR", 1, Cause(f"c{number}"), final=False)
        assert isinstance(step, Step)
        book = step.book
    assert post(book, "H1", 1, "EUR", 1, Cause("more"), final=False) is Refusal.TOO_MANY_PARTS
    assert isinstance(post(book, "H1", 1, "EUR", 1, Cause("last")), Step)


def test_of_many_captures_since_the_last_balance_none_is_given_back_by_one_that_was_said_before_it() -> None:
    book = state_known(EMPTY, AccountState(account_id="A", currency="EUR", balance_minor=1_000, as_of_ms=0))
    for number in range(1, 3 * POSTINGS_MAX):
        step = post(confirm(book, Terms(f"H{number}", f"TH{number}", 1, "EUR", LIFE_MS)).book, f"H{number}", 1, "EUR", number)
        assert isinstance(step, Step)
        book = told(step.book, step.hold)
    assert len(book.postings) <= POSTINGS_MAX
    last = 3 * POSTINGS_MAX - 1
    for as_of_ms in (1, last - POSTINGS_MAX // 2, last - 1, last):
        book = state_known(book, AccountState(account_id="A", currency="EUR", balance_minor=1_000 - as_of_ms, as_of_ms=as_of_ms))
        assert book.balance_minor <= 1_000 - last
    assert book.balance_minor == 1_000 - last
    assert book.postings == ()


def test_no_bytes_are_the_empty_book() -> None:
    assert Book.from_bytes(None) is EMPTY
    assert Book.from_bytes(b"") is EMPTY
