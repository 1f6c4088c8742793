"""A world: the whole pipeline on in-memory stores, a list for the log, a clock that stands still until told."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from features.catalogue import CATALOGUE, Catalogue
from features.memory import DictMemory
from models.ensemble import Ensemble
from models.history import Examples
from models.hold import EMPTY, UnknownAccount, state_known
from models.opinion import Judges, Panel
from models.policy import Policy, policy_from_toml
from models.recipe import Recipe, recipe_from_toml
from models.registry import default_policy_text
from models.train import Artefact, train
from schemas.account import AccountState
from schemas.avro import decode
from schemas.decision import Decision
from schemas.topics import DECISIONS
from schemas.transaction import Transaction, TransactionKind
from streams.answers import DictAnswers
from streams.asked import HTTP, Decided, Origin
from streams.books import DictBooks
from streams.bus import ListBus
from streams.pipeline import decide, decide_all
from streams.train import DEFAULT_RECIPE
from streams.world import Together, World

NOON = 1_767_268_800_000
"""2026-01-01 12:00 UTC."""
DEFAULT_RECIPE_TEXT = DEFAULT_RECIPE.read_text(encoding="utf-8")


@functools.cache
def an_ensemble() -> Ensemble:
    """A small trained ensemble: fraud is where the card was busy within ten minutes."""
    chance = np.random.default_rng(1)
    rows = chance.random((2_000, len(CATALOGUE.names)))
    busy = CATALOGUE.index["velocity.card_count_10m"]
    rows[:, busy] = chance.integers(0, 12, 2_000)
    return trained_quickly(examples_of(rows, rows[:, busy] > 9, np.arange(2_000)), quick(), a_policy(), seed=1).ensemble


def examples_of(
    vectors: npt.NDArray[np.float64], frauds: npt.NDArray[np.bool_], at_ms: npt.NDArray[np.int64], catalogue: Catalogue = CATALOGUE
) -> Examples:
    """Vectors of a catalogue as examples that are all known; two rows in time are of one card."""
    kinds = np.where(frauds, "theft", None).astype(object)
    cards = np.arange(len(frauds)) // 2
    return Examples(catalogue.catalogue_id, catalogue.names, vectors, frauds, kinds, at_ms, cards, int(at_ms[-1]))


def quick(text: str = DEFAULT_RECIPE_TEXT) -> Recipe:
    """The recipe of this text with fewer trees, so that tests are quick."""
    return recipe_from_toml(text.replace("max_iter = 60,", "max_iter = 30,").replace("max_iter = 200,", "max_iter = 60,"))


def trained_quickly(examples: Examples, recipe: Recipe, policy: Policy, seed: int, threads: int = 1) -> Artefact:
    """As `train`, compared with scikit-learn on few rows: those that the gate wants are most of the time that a small training takes."""
    return train(examples, recipe, policy, seed, threads, parity_rows=1_000)


@functools.cache
def a_policy() -> Policy:
    """The default policy, bound."""
    return policy_from_toml(default_policy_text()).bound(CATALOGUE.names)


@functools.cache
def a_stepping_policy() -> Policy:
    """The default policy, whose first rule for a busy card has an e-commerce customer authenticate in place of a block."""
    rule = 'value = 5, outcome = "block", reason = "many_card_payments_1m"'
    assert rule in default_policy_text()
    stepping = rule.replace("value = 5", "value = 0").replace("outcome", 'action = "step_up", outcome')
    return policy_from_toml(default_policy_text().replace(rule, stepping, 1)).bound(CATALOGUE.names)


def a_transaction(transaction_id: str = "t1", **changes: object) -> Transaction:
    """A plain valid card payment at noon."""
    plain: dict[str, object] = {
        "transaction_id": transaction_id,
        "kind": TransactionKind.CARD_PRESENT,
        "at_ms": NOON,
        "amount_minor": 1_000,
        "currency": "EUR",
        "account_id": "a1",
        "card_token": "crd_k1_1",
        "card_country": "DE",
        "merchant_id": "m1",
        "mcc": "5411",
        "country": "DE",
        "latitude": 52.5,
        "longitude": 13.4,
    }
    return Transaction(**(plain | changes))  # type: ignore[arg-type]


@dataclass
class TestWorld:
    """A World and the parts that a test looks at."""

    __test__ = False
    world: World
    bus: ListBus
    books: DictBooks
    answers: DictAnswers
    now_ms: int = NOON

    async def decide(self, txn: Transaction, origin: Origin = HTTP) -> Decided:
        """Decides at this world's time."""
        return await decide(txn, self.world, self.now_ms, origin)

    def ask_for_authentication(self) -> None:
        """From now on every e-commerce payment needs it, and any other card payment is blocked."""
        self.world.panel = Panel(Judges(an_ensemble(), a_stepping_policy()))

    def know(self, account_id: str = "a1", balance_minor: int = 100_000, **changes: object) -> None:
        """Says an account's balance."""
        said: dict[str, object] = {"currency": "EUR", "as_of_ms": 1} | changes
        state = AccountState(account_id=account_id, balance_minor=balance_minor, **said)  # type: ignore[arg-type]
        self.books.books[account_id] = state_known(self.books.books.get(account_id, EMPTY), state)

    @property
    def deciding(self) -> tuple[str, str]:
        """The ids of the model and the policy that decide."""
        model, policy = self.world.panel.champions
        return model.model_id, policy.policy_id

    @property
    def decisions(self) -> list[Decision]:
        """What the log of decisions says."""
        return [decode(Decision, m.value) for m in self.bus.told[DECISIONS.name]]


def a_world(unknown_account: UnknownAccount = UnknownAccount.DECLINE) -> TestWorld:
    """A fresh world."""
    bus, books, answers = ListBus(), DictBooks(), DictAnswers()
    world = World(
        catalogue=CATALOGUE,
        panel=Panel(Judges(an_ensemble(), a_policy())),
        memory=DictMemory(CATALOGUE),
        books=books,  # type: ignore[arg-type]  # the same contract, in memory
        answers=answers,  # type: ignore[arg-type]  # the same contract, in memory
        bus=bus,
        unknown_account=unknown_account,
        hold_lease_ms=30_000,
        future_ms_max=300_000,
        clock_ms=lambda: NOON,
        observe=lambda stop, seconds, count: None,
        together=Together(decide_all),
    )
    return TestWorld(world, bus, books, answers)
