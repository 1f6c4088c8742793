"""Who decides in this process and who stands by: by the registry's history and the control topic, taken over while the app runs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TypeVar

from features.catalogue import Catalogue
from models.ensemble import Ensemble
from models.governance import Item, deciding, standing_by
from models.opinion import Judges, Panel, Seat
from models.policy import Policy
from models.registry import Registry
from schemas.errors import ArtefactError, HoldfastError
from schemas.governance import Control, Kind
from streams import journal
from streams.control import Ear, Told, newest, waited_for
from streams.folder import keys_of
from streams.settings import Settings
from streams.world import World

LISTEN_S, PAUSE_S = 1.0, 0.5
"""How long a process listens to the control topic at a time, and rests: what was told there decides within a second or two."""
T = TypeVar("T", Ensemble, Policy)


class Bench:
    """The models and policies of a registry, bound to a catalogue. What was opened is not opened again: its id is its contents' hash."""

    def __init__(self, settings: Settings, catalogue: Catalogue) -> None:
        self.registry = Registry(settings.registry_dir, keys_of(settings))
        self._catalogue = catalogue
        self._models: dict[str, Ensemble] = {}
        self._policies: dict[str | None, Policy] = {}
        self.missing: dict[str, str] = {}
        """By id, why who is to stand by cannot: the others decide without it."""

    def panel(self, told: Told) -> Panel:
        """Who decides and who stands by. ArtefactError if no model decides, or the one that does cannot be used here."""
        inventory = self.registry.inventory()
        model_id, policy_id = (deciding(inventory, kind, told.get(kind)) for kind in (Kind.MODEL, Kind.POLICY))
        if model_id is None:
            raise ArtefactError("no model was promoted")
        champions, self.missing = Judges(self._model(model_id), self._policy(policy_id)), {}
        models = self._seats(standing_by(inventory, Kind.MODEL, told), model_id, self._model)
        policies = self._seats(standing_by(inventory, Kind.POLICY, told), policy_id, self._policy)
        panel = Panel(champions, models, policies)
        ids = {model_id, policy_id, *(seat.item_id for seat in panel.seats)}
        self._models = {name: one for name, one in self._models.items() if name in ids}
        self._policies = {name: one for name, one in self._policies.items() if name in ids}
        return panel

    def _seats(self, items: Sequence[Item], champion_id: str | None, opened: Callable[[str], T]) -> tuple[Seat[T], ...]:
        """Those that can stand by here. Who was gone back to by the topic decides, though the history has it stand by."""
        seats = []
        for item in items:
            try:
                if item.item_id != champion_id:
                    seats.append(Seat(item.item_id, opened(item.item_id), item.share))
            except (HoldfastError, OSError) as error:
                self.missing[item.item_id] = str(error)
        return tuple(seats)

    def _model(self, model_id: str) -> Ensemble:
        if model_id not in self._models:
            self._models[model_id] = self.registry.load_for(model_id, self._catalogue)
        return self._models[model_id]

    def _policy(self, policy_id: str | None) -> Policy:
        if policy_id not in self._policies:
            self._policies[policy_id] = self.registry.policy_of(policy_id).bound(self._catalogue.names)
        return self._policies[policy_id]


async def first_panel(bench: Bench, ear: Ear[Control]) -> tuple[Panel, Told]:
    """The first panel, and what the topic says: waited for where no model was promoted yet, or what is to decide cannot be used."""
    told: Told = {}

    def seen() -> tuple[Panel, Told]:
        nonlocal told
        told = newest(told, ear.heard(LISTEN_S))
        return bench.panel(told), told

    return await waited_for("a model and a policy", seen)


async def stay_current(world: World, bench: Bench, ear: Ear[Control], told: Told) -> None:
    """Takes over who decides and who stands by while the app runs, all in one step; one that does not fit is said, not taken.

    It hears of it on the control topic, or sees it in the registry's folder where the topic is silent. What could not be used (an artefact
    that is not here yet) is tried again each time.
    """
    seen = (-1, told)
    try:
        while True:
            told = world.told = newest(told, await asyncio.to_thread(ear.heard, LISTEN_S))
            now = bench.registry.moves_at(), told
            if now != seen and await taken_over(world, bench, told):
                seen = now
            await asyncio.sleep(PAUSE_S)
    finally:
        ear.close()


async def taken_over(world: World, bench: Bench, told: Told) -> bool:
    """Whether what is to decide and to stand by now does. Compiled code is warm already; arrays are loaded and checked beside the loop."""
    try:
        panel = await asyncio.to_thread(bench.panel, told)
    except (HoldfastError, OSError) as error:
        journal.logger().error("the promoted model or policy cannot be used", reason=str(error))
        return False
    if panel.ids != world.panel.ids:
        world.panel = panel
        champions = panel.champions
        beside = [f"{seat.item_id} {seat.share:.1%}" for seat in panel.seats]
        journal.logger().info("now deciding with", model_id=champions.model.model_id, policy_id=champions.policy.policy_id, beside=beside)
    for item_id, why in bench.missing.items():
        journal.logger().error("a challenger or shadow cannot stand by", item_id=item_id, reason=why)
    return not bench.missing
