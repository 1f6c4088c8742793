"""Which keys Redis has for a release: its layouts by the beginning of their keys, and whether all that belongs there is there.

Two releases whose rows need other columns write keys of their own. `loaded` says of each beginning whether who decides keeps it, or
whether it is filled from the topics up to the offsets in `loading`. What is not named there was never filled.
"""

from __future__ import annotations

from collections.abc import Mapping

from features.catalogue import Catalogue
from features.layout import LogLayout, ProfileLayout
from features.tally import TallyLayout
from features.wire import Wire
from streams.answers import sound
from streams.lane import Place, as_fields, places_in

LOADED, LOADING, LOADER = b"loaded", b"loading", b"loader"
"""The hash of beginnings, the hash of offsets, and the lock of who fills."""
KEPT, FILLED = b"kept", b"filled"


def beginnings(catalogue: Catalogue) -> tuple[bytes, ...]:
    """What the keys of its logs, tallies and profiles begin with."""
    layouts: list[LogLayout | TallyLayout | ProfileLayout] = [*catalogue.log_layouts, *catalogue.tally_layouts, *catalogue.profile_layouts]
    return tuple(dict.fromkeys(layout.key("").encode() for layout in layouts))


async def not_kept(wire: Wire, catalogue: Catalogue) -> tuple[frozenset[bytes], bool]:
    """The beginnings that are not kept by who decides, and whether anything is named at all."""
    own = beginnings(catalogue)
    states, known = sound(await wire.send((b"HMGET", LOADED, *own), (b"HLEN", LOADED)))
    return frozenset(name for name, state in zip(own, states, strict=True) if state != KEPT), known > 0


async def is_kept(wire: Wire, catalogue: Catalogue) -> bool:
    """Whether all that it reads is kept, and nobody fills what another release reads. Where nothing is named, this release is the first."""
    missing, known = await not_kept(wire, catalogue)
    (filling,) = sound(await wire.send((b"EXISTS", LOADER)))
    if not known:
        await keep(wire, catalogue)
    return not filling and (not missing or not known)


async def is_left(wire: Wire, catalogue: Catalogue) -> bool:
    """Whether something that it reads is neither kept nor being filled now."""
    missing, _ = await not_kept(wire, catalogue)
    (filling,) = sound(await wire.send((b"EXISTS", LOADER)))
    return bool(missing) and not filling


async def keep(wire: Wire, catalogue: Catalogue) -> None:
    """From now on it is this release that decides, and it keeps its own keys alone: any other must be filled before it may decide."""
    own = beginnings(catalogue)
    _, names = sound(await wire.send((b"HSET", LOADED, *[part for name in own for part in (name, KEPT)]), (b"HKEYS", LOADED)))
    others = set(names) - set(own)
    sound(await wire.send((b"DEL", LOADING), *([(b"HDEL", LOADED, *others)] if others else [])))


async def filled(wire: Wire) -> dict[Place, int]:
    """By topic and partition, up to where what is not kept was filled; empty if it never was."""
    (fields,) = sound(await wire.send((b"HGETALL", LOADING)))
    return places_in(fields)


async def fill(wire: Wire, names: frozenset[bytes], offsets: Mapping[Place, int]) -> None:
    """Notes that these beginnings are filled up to there."""
    if offsets:
        sound(await wire.send((b"HSET", LOADING, *as_fields(offsets))))
    if names:
        sound(await wire.send((b"HSET", LOADED, *[part for name in names for part in (name, FILLED)])))
