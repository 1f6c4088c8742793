"""Where a key lives on a Redis Cluster, and how a group of commands is split into single keys and its replies are put together again."""

from __future__ import annotations

from binascii import crc_hqx
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from itertools import count
from typing import Any, NamedTuple

SLOTS = 16_384
_EVERY_NODE = frozenset({"SCRIPT", "FLUSHALL", "PING", "INFO", "CONFIG", "ACL"})
"""Commands that name no key: every master gets them."""
_BY_COUNT = frozenset({"EVAL", "EVALSHA"})
"""Commands whose keys come after a script and their number."""
_READS = frozenset({"MGET", "GET", "EXISTS"})
_NOTHING = (None, 0, [None])
"""What a key that is not there says to EXISTS, GET and MGET (and a script that refused, 0)."""
MARKS = frozenset({b"whole", b"whole:moves", b"building", b"building:moves"})
"""Keys of which a cluster has one in each slot, where a single server has one: each slot says for itself that it was not forgotten.

They lie among the keys that they speak for, move with them, and are gone when those are: a node that lost what it knew, or another that
took over its slots without it, is noticed by the first command that asks.
"""
_REFUSED = ("MOVED ", "ASK ", "TRYAGAIN")

Node = tuple[str, int]
"""Host and port of a server."""
Command = tuple[Any, ...]


def _bytes(word: Any) -> bytes:
    return word if isinstance(word, bytes) else str(word).encode()


@cache
def _upper(name: bytes | str) -> str:
    return _bytes(name).decode().upper()


def _name(command: Command) -> str:
    return _upper(command[0])


def key_slot(key: bytes | str) -> int:
    """The slot of a key: CRC16/XMODEM of it, or of what stands between its first `{` and the next `}` if that is not empty.

    Redis Cluster specification, "Hash tags".
    """
    key = _bytes(key)
    begin = key.find(b"{")
    if begin >= 0:
        end = key.find(b"}", begin + 1)
        if end > begin + 1:
            key = key[begin + 1 : end]
    return crc_hqx(key, 0) % SLOTS


class Piece(NamedTuple):
    """A command of one slot, or (slot None) for every node.

    `place` and `part`: of which of the commands, and of which key of an MGET (-1: no MGET), it is a piece. `key` is its first key.
    """

    place: int
    part: int
    key: bytes | str
    slot: int | None
    command: Command
    is_mark: bool = False


@cache
def _tags() -> tuple[bytes, ...]:
    """For each slot a hash tag that lies in it."""
    tags: dict[int, bytes] = {}
    for number in count():
        tag = b"%d" % number
        tags.setdefault(key_slot(tag), tag)
        if len(tags) == SLOTS:
            return tuple(tags[slot] for slot in range(SLOTS))
    raise AssertionError("unreachable")


def mark_in(slot: int, mark: bytes) -> bytes:
    """The key of a slot's own mark."""
    return b"%b:{%b}" % (mark, _tags()[slot])


def pieces(commands: Sequence[Command], samples: Sequence[int] = ()) -> list[Piece]:
    """The commands by slot, in their order. An MGET becomes one for each key: no command then waits for a slot that is half moved.

    A command with several keys of its own (a script's) goes to the slot of the first. A mark (`MARKS`) that is read becomes those of
    the slots that the call touches otherwise, or of `samples` if it touches none; one that is written, those of all slots.
    """
    found: list[Piece] = []
    for place, command in enumerate(commands):
        _cut(place, command, found)
    if not any(piece.is_mark for piece in found):
        return found
    touched = sorted({piece.slot for piece in found if piece.slot is not None and not piece.is_mark}) or samples
    return [one for piece in found for one in (_marks(piece, touched) if piece.is_mark else (piece,))]


def _cut(place: int, command: Command, found: list[Piece]) -> None:
    """Puts the pieces of one command behind those found."""
    name = _name(command)
    if name == "MGET":
        found += [Piece(place, part, key, key_slot(key), (command[0], key), key in MARKS) for part, key in enumerate(command[1:])]
    elif name in _EVERY_NODE:
        found.append(Piece(place, -1, b"", None, command))
    elif name in _BY_COUNT:
        key, slot = command[3], key_slot(command[3])
        found.append(Piece(place, -1, key, slot, command if key in MARKS else _marked(command, slot), key in MARKS))
    else:
        found.append(Piece(place, -1, command[1], key_slot(command[1]), command, command[1] in MARKS))


def _marked(command: Command, slot: int) -> Command:
    """The command with its marks as those of the slot."""
    if _name(command) not in _BY_COUNT:
        return (command[0], mark_in(slot, command[1]), *command[2:]) if command[1] in MARKS else command
    end = 3 + int(command[2])
    return (*command[:3], *(mark_in(slot, key) if key in MARKS else key for key in command[3:end]), *command[end:])


def _marks(piece: Piece, touched: Iterable[int]) -> Iterator[Piece]:
    for slot in touched if _name(piece.command) in _READS else range(SLOTS):
        command = _marked(piece.command, slot)
        yield piece._replace(key=command[3 if _name(command) in _BY_COUNT else 1], slot=slot, command=command)


class Unreached(Exception):
    """The reply to a command whose node was not reached: it may have been carried out or not."""


def joined(commands: Sequence[Command], parts: Sequence[Piece], replies: Sequence[Any]) -> list[Any]:
    """The replies to the commands, of those to their pieces: an error stands for all, and a mark is there if it is in each slot.

    A node that was not reached takes only its own keys out of an MGET (`Unreached` in their place), and only its own slots' marks.
    """
    if len({piece[:2] for piece in parts}) < len(parts):
        parts, replies = _agreed(parts, replies)
    found: list[Any] = [[] if _name(command) == "MGET" else None for command in commands]
    for (place, part, *_), reply in zip(parts, replies, strict=True):
        if part >= 0 and isinstance(reply, Unreached) and not isinstance(found[place], Exception):
            found[place].append(reply)
        elif part < 0 or isinstance(reply, Exception):
            found[place] = reply
        elif not isinstance(found[place], Exception):
            found[place] += reply
    return found


def _agreed(parts: Sequence[Piece], replies: Sequence[Any]) -> tuple[list[Piece], list[Any]]:
    """What several nodes or slots say to one piece, as one: an error if one says so, else that it is not there if one says so, else
    that one was not reached if so."""
    said: dict[tuple[int, int], tuple[Piece, list[Any]]] = {}
    for piece, reply in zip(parts, replies, strict=True):
        said.setdefault((piece.place, piece.part), (piece, []))[1].append(reply)
    return [piece for piece, _ in said.values()], [min(each, key=_rank) for _, each in said.values()]


def _rank(reply: Any) -> int:
    if isinstance(reply, Unreached):
        return 2
    return 0 if isinstance(reply, Exception) else 1 if reply in _NOTHING else 3


def unmarked(parts: Sequence[Piece], replies: Sequence[Any]) -> dict[int, bool]:
    """Of the slots whose marks were read, whether the mark is missing."""
    read = [pair for pair in zip(parts, replies, strict=True) if pair[0].is_mark and _name(pair[0].command) in _READS]
    return {piece.slot: reply in _NOTHING for piece, reply in read if piece.slot is not None}


def is_refused(reply: Any) -> bool:
    """Whether the server says that it did not carry a command out, and that another or a later time will."""
    return isinstance(reply, Exception) and str(reply).startswith(_REFUSED)


def to_repeat(parts: Sequence[Piece], replies: Sequence[Any], numbers: Sequence[int]) -> list[int]:
    """Of these pieces those to send again: the refused ones, and each read that came after one of its key and overtook it so."""
    if not any(isinstance(replies[number], Exception) for number in numbers):
        return []
    again: list[int] = []
    late: set[bytes | str] = set()
    for number in numbers:
        piece = parts[number]
        if is_refused(replies[number]):
            late.add(piece.key)
            again.append(number)
        elif piece.key in late and _name(piece.command) in _READS:
            again.append(number)
    return again


class Way(NamedTuple):
    """Where a refused command is to go: to that node (None: where the map says, a little later), after ASKING or not."""

    node: Node | None
    asking: bool


def way(refusal: Exception, said_by: Node) -> Way:
    """What `MOVED 3999 host:port`, `ASK 3999 host:port` and `TRYAGAIN` say; an empty host is the host that said it."""
    words = str(refusal).split()
    if words[0] not in ("MOVED", "ASK"):
        return Way(None, False)
    host, _, port = words[2].rpartition(":")
    return Way((host or said_by[0], int(port)), words[0] == "ASK")


def owners(reply: Iterable[Sequence[Any]], said_by: Node) -> list[Node | None]:
    """The master of each slot, of the reply to CLUSTER SLOTS; None where nobody serves it. An empty host is the host that was asked."""
    masters: list[Node | None] = [None] * SLOTS
    for first, last, master, *_ in reply:
        host = _bytes(master[0] or b"").decode()
        masters[first : last + 1] = [(host or said_by[0], int(master[1]))] * (last - first + 1)
    return masters
