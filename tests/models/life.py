"""Any life of authorizations in any order, by the moves that door, `hold` app and rebuild make, against plain arithmetic beside it.

One account with a limit a day. The log is four lists; Redis is one book. A crash may come between the book and the log, and may take the book.
"""

from __future__ import annotations

from collections import Counter

import msgspec
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from models.audit import Audit
from models.clearing import WHOLE, Asked, ahead, clearings, unconfirmed_increments, without
from models.controls import DAY_MS
from models.hold import (
    EMPTY,
    FINAL,
    Book,
    Refusal,
    Step,
    UnknownAccount,
    cleared,
    confirm,
    confirmed_event,
    controls_known,
    expire,
    place,
    state_known,
    terms_of,
    told,
    untold_events,
)
from models.ledger import transfers_of_hold
from schemas import identity
from schemas.account import AccountState
from schemas.avro import encode
from schemas.controls import Controls, Limit, Period, Usability
from schemas.decision import Decision
from schemas.hold import Clearing, ClearingKind, HoldEvent
from schemas.transaction import TransactionKind
from streams.rebuild import held
from tests.models.decisions import a_decision

BALANCE, LEASE_MS, LIFE_MS = 20_000, 30_000, 4 * DAY_MS
STATE = AccountState(account_id="A", currency="USD", balance_minor=BALANCE, as_of_ms=0)
COUNTS: Counter[str] = Counter()
"""What was done in all lives of this process."""


class Sheet:
    """What one hold must be, by the clearings that the book has had of it."""

    def __init__(self, decision: Decision, lease_until_ms: int) -> None:
        self.decision, self.until_ms = decision, lease_until_ms
        self.confirmed = False
        self.moves: dict[str, tuple[bool, int, bool]] = {}  # clearing -> capture, amount (of a reversal 0: all), last
        self.told: set[str] = set()
        self.had: dict[str, Clearing] = {}
        self.expired = False

    def counted(self) -> tuple[int, int, bool]:
        """Taken, given back, and whether it has ended."""
        taken = given = 0
        for captures, amount, last in self.moves.values():
            left = self.decision.held_minor - taken - given
            taken += amount if captures else 0
            given += 0 if captures else amount or left
            if last or taken + given >= self.decision.held_minor:
                return taken, given, True
        return taken, given, self.expired

    def left(self, now_ms: int) -> int:
        """What of it keeps money from being spent."""
        taken, given, ended = self.counted()
        lives = now_ms < (int(self.decision.hold_expires_at_ms or 0) if self.confirmed else self.until_ms)
        return self.decision.held_minor - taken - given if lives and not ended else 0


class Life(RuleBasedStateMachine):
    """Every move, in any order."""

    amounts = st.integers(1, 2_500)

    @initialize()
    def opened(self) -> None:
        self.book = state_known(EMPTY, STATE)
        self.now_ms = 10 * DAY_MS
        self.sheets: dict[str, Sheet] = {}
        self.decisions: list[Decision] = []
        self.followed = 0
        self.waiting: list[tuple[Clearing, int]] = []  # told to the log, and where; not worked off
        self.clearings: list[Clearing] = []
        self.asked: list[Clearing] = []  # what doors have promised, in order
        self.dead: set[int] = set()
        self.events: dict[str, HoldEvent] = {}
        self.controls: Controls | None = None
        self.number = 0

    # What a door does.

    @rule(
        data=st.data(),
        amount=amounts,
        tolerance=st.sampled_from([0, 20]),
        least=st.sampled_from([0, 0, 1, 700]),
        how=st.sampled_from(["new", "new", "new", "again", "increment"]),
    )
    def authorize(self, data: st.DataObject, amount: int, tolerance: int, least: int, how: str) -> None:
        """A transaction is decided; the service may die before the log has it, and then it comes again or never."""
        logged = [d.transaction_id for d in self.decisions]
        again = sorted(self.sheets.keys() - set(logged))
        originals = [name for name in logged if not name.startswith(identity.INCREMENT)]
        self.number += 1
        name = f"t{self.number}"
        if how == "again" and again:
            name = data.draw(st.sampled_from(again))
        elif how == "increment" and originals:
            name = identity.increment_id(data.draw(st.sampled_from(originals)), name)
        self.decide(name, amount, tolerance, least, died=data.draw(st.integers(0, 5)) == 0)

    def decide(self, name: str, amount: int, tolerance: int, least: int, died: bool) -> None:
        made = a_decision(name, TransactionKind.ECOMMERCE, amount, self.now_ms - 5)
        life = self.now_ms + LIFE_MS
        decision = msgspec.structs.replace(made, hold_expires_at_ms=life, hold_tolerance_minor=amount * tolerance // 100, decided_at_ms=self.now_ms)
        earlier = self.sheets.get(name)
        if earlier is not None and earlier.left(self.now_ms):
            decision = earlier.decision
        free, spent = self.available(), self.spent_today()
        hold_id = str(decision.hold_id)
        terms = (decision.held_minor, "USD", self.now_ms, LEASE_MS, life, UnknownAccount.DECLINE, decision.hold_tolerance_minor)
        got = place(self.book, hold_id, name, *terms, decision.transaction, least)
        if earlier is not None and earlier.left(self.now_ms):
            assert isinstance(got, Step), "a retry finds its hold"
        else:
            wanted = self.refusal(name, decision.held_minor, free, spent)
            if wanted is Refusal.INSUFFICIENT_FUNDS and 0 < least <= free:
                wanted, decision = None, msgspec.structs.replace(decision, held_minor=free, hold_tolerance_minor=0, approved_minor=free)
                COUNTS["authorize in part"] += 1
            assert (got if isinstance(got, Refusal) else None) == wanted, (got if isinstance(got, Refusal) else None, wanted, spent)
            COUNTS[f"authorize {wanted or 'held'}"] += 1
        if isinstance(got, Refusal):
            return
        assert (got.hold.amount_minor, got.hold.tolerance_minor) == (decision.held_minor, decision.hold_tolerance_minor)
        self.book = got.book
        self.sheets.setdefault(name, Sheet(decision, self.now_ms + LEASE_MS))
        if earlier is None or not earlier.left(self.now_ms):
            self.sheets[name] = Sheet(decision, self.now_ms + LEASE_MS)
        if died:
            COUNTS["died before the log had it"] += 1
        else:
            self.decisions.append(self.sheets[name].decision)

    def refusal(self, name: str, amount: int, free: int, spent: tuple[int, int]) -> Refusal | None:
        """What must be said to one more payment, or to an increment, which is no payment more."""
        if self.controls is not None and self.controls.status is Usability.FROZEN:
            return Refusal.ACCOUNT_FROZEN
        if self.controls is not None and self.controls.limits:
            (limit,) = self.controls.limits
            if spent[0] + amount > int(limit.amount_minor or 0):
                return Refusal.DAY_LIMIT
            if spent[1] + 1 > int(limit.count or 0) and not name.startswith(identity.INCREMENT):
                return Refusal.DAY_COUNT
        return Refusal.INSUFFICIENT_FUNDS if amount > free else None

    @rule(data=st.data(), captures=st.booleans(), amount=st.one_of(st.just(WHOLE), st.integers(1, 900)), final=st.sampled_from([False, False, True]))
    @precondition(lambda self: self.decisions)
    def ask(self, data: st.DataObject, captures: bool, amount: int, final: bool) -> None:
        """A capture or a reversal is asked for, whole or in part: judged ahead of what the `hold` app has yet to apply."""
        name = data.draw(st.sampled_from([d.transaction_id for d in self.decisions]))
        kind = ClearingKind.CAPTURE if captures else ClearingKind.REVERSAL
        asked = Asked(kind, f"c{len(self.clearings)}", name, "A", amount, "", self.now_ms, final or not captures)
        logged = {d.transaction_id for d in self.decisions}
        book = without(self.book, set(unconfirmed_increments(self.book, name)) - logged)
        made = clearings(ahead(book, self.asked), asked, self.now_ms)
        COUNTS[f"{kind} {made if isinstance(made, Refusal) else 'asked'}"] += 1
        if isinstance(made, Refusal):
            return
        total = sum(clearing.amount_minor for clearing in made)
        assert amount == WHOLE or total == amount
        for clearing in made:
            self.asked.append(clearing)
            self.tell(clearing)

    def tell(self, clearing: Clearing) -> None:
        self.waiting.append((clearing, len(self.clearings)))
        self.clearings.append(clearing)

    @rule(data=st.data())
    @precondition(lambda self: self.clearings)
    def duplicate(self, data: st.DataObject) -> None:
        """A clearing lies in the log twice, or comes with other contents under its id."""
        clearing = data.draw(st.sampled_from(self.clearings))
        changed = data.draw(st.booleans()) and clearing.amount_minor > 1
        self.tell(msgspec.structs.replace(clearing, amount_minor=clearing.amount_minor - 1) if changed else clearing)
        COUNTS["changed repeat" if changed else "repeat"] += 1

    # What the `hold` app does.

    @rule()
    @precondition(lambda self: self.followed < len(self.decisions))
    def follow(self) -> None:
        """The next decision in the log."""
        decision = self.decisions[self.followed]
        self.followed += 1
        event = confirmed_event(decision, "decisions", 0, self.followed - 1)
        self.events[event.event_id] = event
        self.book = confirm(self.book, terms_of(decision)).book
        self.sheets[decision.transaction_id].confirmed = True

    @rule(dies=st.sampled_from([False, False, True]))
    @precondition(lambda self: self.waiting)
    def apply(self, dies: bool) -> None:
        """The next clearing in the log; the app may die after it has changed the book and before it has told."""
        clearing, offset = self.waiting[0]
        number = next(n for n, d in enumerate(self.decisions) if d.transaction_id == clearing.transaction_id)
        while self.followed <= number:
            self.follow()
        sheet = self.sheets[clearing.transaction_id]
        step = self.applied(clearing, offset, sheet)
        if dies and step is not None:
            COUNTS["died before it told"] += 1
            return
        self.waiting.pop(0)
        if step is not None:
            self.log(step)
            sheet.told.add(clearing.clearing_id)

    def applied(self, clearing: Clearing, offset: int, sheet: Sheet) -> Step | None:
        """What the clearing makes of the book, as it must be by the sheet. None: it is nothing new, or a dead letter."""
        known = sheet.moves.get(clearing.clearing_id)
        says = clearing.kind is ClearingKind.CAPTURE, clearing.amount_minor, clearing.final
        taken, given, ended = sheet.counted()
        got = cleared(self.book, clearing, 0, offset)
        if known is not None:
            first = sheet.had[clearing.clearing_id]
            if self.book.hold(str(sheet.decision.hold_id)) is None or clearing != first:
                assert isinstance(got, Refusal)
                if clearing != first:
                    self.dead.add(offset)
                return None
            assert isinstance(got, Step), "a repeat changes nothing"
            assert got.book is self.book
            return got
        left = sheet.decision.held_minor - taken - given
        tolerated = sheet.decision.hold_tolerance_minor * (sheet.decision.held_minor - given) // sheet.decision.held_minor
        most = left + (tolerated if says[0] else 0)
        late = clearing.at_ms >= int(sheet.decision.hold_expires_at_ms or 0)
        assert isinstance(got, Step) == (not ended and not late and says[1] <= most), (got, ended, late, says, most)
        if isinstance(got, Refusal):
            COUNTS[f"refused {got}"] += 1
            self.dead.add(offset)
            return None
        COUNTS["applied"] += 1
        sheet.had[clearing.clearing_id] = clearing
        sheet.moves[clearing.clearing_id] = (says[0], says[1], clearing.final if says[0] else says[1] in (0, left))
        self.book = got.book
        return got

    def log(self, step: Step) -> None:
        """The log gets what it does not have of the hold, and then the book lets it go."""
        for event in untold_events("A", step.hold):
            before = self.events.setdefault(event.event_id, event)
            assert before == event, "one id, one record: a hold ends once, and a part is told once"
            if event.clearing_id is not None:
                self.sheets[event.transaction_id].told.add(event.clearing_id)
        self.book = told(self.book, step.hold)

    @rule(dies=st.booleans())
    def expire_due(self, dies: bool) -> None:
        """What nobody ended in time ends."""
        for hold in self.book.holds:
            step = expire(self.book, hold.hold_id, self.now_ms)
            if not isinstance(step, Step):
                continue
            self.book, sheet = step.book, self.sheets[hold.transaction_id]
            sheet.expired = True
            COUNTS["expired"] += 1
            if dies:
                break
        for hold in self.book.holds if not dies else ():
            if hold.state in FINAL and self.sheets[hold.transaction_id].expired:
                self.log(Step(self.book, hold))

    # What else happens.

    @rule(
        freezes=st.sampled_from([False] * 5 + [True]), limit=st.one_of(st.none(), st.none(), st.tuples(st.integers(2_000, 9_000), st.integers(2, 9)))
    )
    @precondition(lambda self: len(self.decisions) % 3 == 2)
    def control(self, freezes: bool, limit: tuple[int, int] | None) -> None:
        """The bank says what is forbidden from now on."""
        self.now_ms += 1  # what comes before in the same millisecond is counted or not: nobody could say
        earlier = self.controls
        since = earlier.counted_since_ms if earlier is not None and earlier.counts else self.now_ms
        self.controls = Controls(
            controls_id="ctl",
            account_id="A",
            status=Usability.FROZEN if freezes else Usability.ACTIVE,
            limits=(Limit(period=Period.DAY, amount_minor=limit[0], count=limit[1]),) if limit else (),
            counted_since_ms=since,
            at_ms=self.now_ms if earlier is None else max(self.now_ms, earlier.at_ms + 1),
        )
        self.book = controls_known(controls_known(self.book, self.controls), self.controls)
        COUNTS["controls"] += 1

    @rule(span=st.sampled_from([1, 1_000, LEASE_MS - 1, LEASE_MS, LEASE_MS, DAY_MS]))
    def tick(self, span: int) -> None:
        """Time goes by."""
        self.now_ms += span

    @rule()
    @precondition(lambda self: len(self.clearings) % 2 == 1)
    def forget(self) -> None:
        """Redis loses the book: it is what the log says."""
        COUNTS["forgot"] += 1
        book = state_known(EMPTY, STATE)
        if self.controls is not None:
            book = controls_known(book, self.controls)
        confirmed = {e.hold_id for e in self.events.values() if e.state == "confirmed"}
        for decision in self.decisions:
            steps = [e for e in self.events.values() if e.hold_id == decision.hold_id and e.state != "confirmed"]
            book = held(book, decision, decision.hold_id in confirmed, steps)
        self.book = book
        logged = {d.transaction_id for d in self.decisions}
        ends = {e.hold_id for e in self.events.values() if e.state == "expired"}
        self.sheets = {name: sheet for name, sheet in self.sheets.items() if name in logged}
        for sheet in self.sheets.values():
            sheet.moves = {c: move for c, move in sheet.moves.items() if c in sheet.told}
            sheet.expired = sheet.decision.hold_id in ends
            sheet.until_ms = int(sheet.decision.hold_expires_at_ms or 0)

    # What must be, always.

    def available(self) -> int:
        taken = sum(sheet.counted()[0] for sheet in self.sheets.values())
        return BALANCE - taken - sum(sheet.left(self.now_ms) for sheet in self.sheets.values())

    def spent_today(self) -> tuple[int, int]:
        """What today's holds hold or took, and how many, since there is a limit."""
        if self.controls is None or not self.controls.counts:
            return 0, 0
        today, minor, number = self.now_ms // DAY_MS, 0, 0
        for sheet in self.sheets.values():
            placed = sheet.decision.decided_at_ms
            if placed // DAY_MS != today or placed < self.controls.counted_since_ms:
                continue
            taken, given, ended = sheet.counted()
            lapsed = not sheet.confirmed and self.now_ms >= sheet.until_ms
            spent = 0 if lapsed else taken if ended else max(taken, sheet.decision.held_minor - given)
            minor += spent
            number += spent > 0 and not sheet.decision.transaction_id.startswith(identity.INCREMENT)
        return minor, number

    @invariant()
    def available_is_the_balance_less_active_holds(self) -> None:
        if hasattr(self, "book"):
            assert self.book.available_minor(self.now_ms) == self.available()
            assert Book.from_bytes(self.book.to_bytes()) == self.book

    @invariant()
    def nothing_is_taken_beyond_hold_and_tolerance(self) -> None:
        for sheet in getattr(self, "sheets", {}).values():
            taken, given, _ = sheet.counted()
            assert taken <= sheet.decision.held_minor + sheet.decision.hold_tolerance_minor
            assert given <= sheet.decision.held_minor

    def teardown(self) -> None:
        """In the end everything is worked off, and the audit of the log must agree."""
        if not hasattr(self, "book"):
            return
        while self.followed < len(self.decisions):
            self.follow()
        while self.waiting:
            self.apply(dies=False)
        self.now_ms += LIFE_MS
        self.expire_due(dies=False)
        audit = Audit()
        for decision in self.decisions:
            audit.decision(decision, encode(decision))
        for offset, clearing in enumerate(self.clearings):
            audit.clearing(clearing, 0, offset)
        for offset in self.dead:
            audit.dead_letter("clearings", 0, offset)
        for event in self.events.values():
            audit.hold_event(event, encode(event))
            for transfer in transfers_of_hold(event):
                audit.transfer(transfer, encode(transfer))
        wrong = audit.disagreements(self.now_ms + 1, 0, {"clearings": {0: 0}})
        assert wrong == [], wrong
        assert all(total == 0 for total in audit.sums().values())
        assert not any(hold.state not in FINAL for hold in self.book.holds if hold.state != "provisional")
        COUNTS["lives"] += 1
