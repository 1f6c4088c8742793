"""Where a key lives on a Redis Cluster, and how a group of commands is split into single keys and its replies are put together again."""

from __future__ import annotations

from binascii import crc_hqx
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

SLOTS = 16_384
_EVERY_NODE = frozenset({"SCRIPT", "FLUSHALL", "PING", "INFO", "CONFIG", "ACL"})
"""Commands that name no key: every master gets them."""
_BY_COUNT = frozenset({"EVAL", "EVALSHA"})
"""Commands whose keys come after a script and their number."""
_READS = frozenset({"MGET", "GET"})
_REFUSED = ("MOVED ", "ASK ", "TRYAGAIN")

Node = tuple[str, int]
"""Host and port of a server."""
Command = tuple[Any, ...]


def _bytes(word: Any) -> bytes:
    return word if isinstance(word, bytes) else str(word).encode()


def _name(command: Command) -> str:
    name = command[0]
    return (name.decode() if isinstance(name, bytes) else str(name)).upper()


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
    """A command of one slot, or (slot None) for every node; `place` is that of the command that it is a piece of, `key` its first key."""

    place: int
    key: bytes | str
    slot: int | None
    command: Command


def pieces(commands: Sequence[Command]) -> list[Piece]:
    """The commands by slot, in their order. An MGET becomes one for each key: no command then waits for a slot that is half moved.

    A command with several keys of its own (a script's) goes to the slot of the first.
    """
    found: list[Piece] = []
    for place, command in enumerate(commands):
        name = _name(command)
        if name == "MGET":
            found += [Piece(place, key, key_slot(key), (command[0], key)) for key in command[1:]]
        elif name in _EVERY_NODE:
            found.append(Piece(place, b"", None, command))
        else:
            key = command[3 if name in _BY_COUNT else 1]
            found.append(Piece(place, key, key_slot(key), command))
    return found


def joined(commands: Sequence[Command], parts: Iterable[Piece], replies: Iterable[Any]) -> list[Any]:
    """The replies to the commands, of those to their pieces; of several to one command an error stands for all."""
    together: list[list[Any]] = [[] for _ in commands]
    for piece, reply in zip(parts, replies, strict=True):
        together[piece.place].append(reply)
    return [_one(_name(command) == "MGET", said) for command, said in zip(commands, together, strict=True)]


def _one(is_mget: bool, said: list[Any]) -> Any:
    if not is_mget and len(said) == 1:
        return said[0]
    wrong = next((reply for reply in said if isinstance(reply, Exception)), None)
    if wrong is not None:
        return wrong
    return [value for reply in said for value in reply] if is_mget else said[0]


def is_refused(reply: Any) -> bool:
    """Whether the server says that it did not carry a command out, and that another or a later time will."""
    return isinstance(reply, Exception) and str(reply).startswith(_REFUSED)


def to_repeat(parts: Sequence[Piece], replies: Sequence[Any], numbers: Iterable[int]) -> list[int]:
    """Of these pieces those to send again: the refused ones, and each read that came after one of its key and overtook it so."""
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
