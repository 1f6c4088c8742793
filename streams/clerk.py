"""The clerk: enters into the signed history what the breaker has done, where the private key is at hand; the breaker's own processes have none."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterable, Iterator

from models.governance import Refusal, cut_off, unentered
from models.registry import Registry
from schemas.errors import ArtefactError, HoldfastError
from schemas.governance import Control, Move
from schemas.topics import CONTROL
from streams.control import Ear, Told, newest
from streams.folder import keys_of
from streams.parts import Say
from streams.settings import Settings

LOOK_S, LISTEN_S = 0.5, 0.5


def entered(registry: Registry, told: Iterable[Control]) -> list[Move]:
    """Makes the moves that the breaker told and the history does not have: under its name, with its figures and at its time.

    ArtefactError where the history lacks the line of which something was told.
    """
    inventory, events = registry.inventory(), tuple(told)
    if lost := cut_off(inventory, events):
        what = f"line {lost.number} of the history ({lost.cause} {lost.item_id}, by {lost.by})"
        raise ArtefactError(f"the log tells of {what}, which ends at line {len(inventory.moves)}: its newest lines were taken away", "altered")
    moves: list[Move] = []
    while due := unentered(inventory, events):
        event, act = due[0]
        made = registry.move(event.kind, event.item_id, act, event.by, event.why, event.at_ms, only_as=len(inventory.moves) + 1)
        if isinstance(made, Move):
            moves.append(made)
        elif made.refusal is not Refusal.OVERTAKEN:
            events = tuple(each for each in events if each is not event)
        inventory = registry.inventory()  # what a person did meanwhile may be later than what the breaker undid
    return moves


@contextlib.contextmanager
def entering(settings: Settings, say: Say) -> Iterator[None]:
    """Does it within seconds while the block runs, in a thread; and keeps the policy of the house, which decides while none is promoted."""
    stop = threading.Event()
    thread = threading.Thread(target=_enter, args=(settings, say, stop), name="clerk", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _enter(settings: Settings, say: Say, stop: threading.Event) -> None:
    ear, registry = Ear(settings, CONTROL, Control), Registry(settings.registry_dir, keys_of(settings))
    try:
        registry.keep_house_policy()
    except (HoldfastError, OSError) as error:
        say(f"the policy of the house could not be kept: {error}")
    told: Told = {}
    done: Told | None = None
    said = ""
    while not stop.wait(LOOK_S):
        told = newest(told, ear.heard(LISTEN_S))
        if told == done:
            continue
        try:
            for move in entered(registry, told.values()):
                say(f"{move.by} has made {move.item_id} decide or stand by ({move.act}): {move.why}")
            done, said = told, ""
        except (HoldfastError, OSError) as error:
            if str(error) != said:
                said = str(error)
                say(f"what the breaker did could not be entered into the history: {said}")
    ear.close()
