"""A spool: records that must outlive the process before anybody else has them. One file, appended to and synced, many records at a time."""

from __future__ import annotations

import asyncio
import fcntl
import os
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from models.registry import on_disk
from streams import journal

KEPT, DONE = b"K", b"D"
_HEAD = 9
"""Length, checksum, kind."""


class Entry(NamedTuple):
    """One record: what is kept, or (DONE) what need not be kept any more."""

    kind: bytes
    content: bytes

    def framed(self) -> bytes:
        """Its bytes in the file."""
        body = self.kind + self.content
        return len(body).to_bytes(4) + zlib.crc32(body).to_bytes(4) + body


def entries_in(content: bytes) -> Iterator[Entry]:
    """The whole entries, up to where a crash cut one off: nobody was answered on what follows."""
    at = 0
    while at + _HEAD <= len(content):
        size, checksum = int.from_bytes(content[at : at + 4]), int.from_bytes(content[at + 4 : at + 8])
        body = content[at + 8 : at + 8 + size]
        if len(body) != size or zlib.crc32(body) != checksum:
            return
        yield Entry(body[:1], body[1:])
        at += 8 + size


class Orphan(NamedTuple):
    """A spool of a process that is gone, kept from all others until it is let go."""

    path: Path
    lock: int
    entries: list[Entry]

    @classmethod
    def at(cls, path: Path) -> Orphan | None:
        """The spool there; None if a process has it."""
        lock = _locked(path)
        return None if lock is None else cls(path, lock, list(entries_in(path.read_bytes())))

    def let_go(self, kept: list[Entry]) -> None:
        """Leaves it with these entries alone. OSError if the disk does not take that: then all stay."""
        try:
            if kept != self.entries:
                os.close(_rewritten(self.path, kept))
        finally:
            os.close(self.lock)


class Spool:
    """One process's spool: the first in the folder that no other process has."""

    def __init__(self, path: Path, descriptor: int, lock: int) -> None:
        self.path = path
        self.size = os.fstat(descriptor).st_size
        """Bytes, those that wait among them."""
        self._descriptor, self._lock = descriptor, lock
        self._waiting: list[tuple[bytes, asyncio.Future[None] | None]] = []
        self._anew: list[Entry] | None = None
        self._writing: asyncio.Task[None] | None = None
        self._free: frozenset[Path] = frozenset()
        """Spools that nobody had when it last looked."""

    @classmethod
    def opened(cls, folder: Path, keep: Callable[[list[Entry]], list[Entry]]) -> tuple[Spool, list[Entry]]:
        """The spool, and its entries; those that `keep` does not name are gone from it."""
        folder.mkdir(parents=True, exist_ok=True)
        number = 0
        while (lock := _locked(folder / f"{number}.spool")) is None:
            number += 1
        path = folder / f"{number}.spool"
        kept = keep(list(entries_in(path.read_bytes() if path.exists() else b"")))
        return cls(path, _rewritten(path, kept), lock), kept

    def append(self, kind: bytes, content: bytes) -> asyncio.Future[None]:
        """Keeps a record; done when the disk has it. OSError if it does not take it."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._put(kind, content, future)
        return future

    def note(self, kind: bytes, content: bytes) -> None:
        """Keeps a record that may be lost in a crash."""
        self._put(kind, content, None)

    def begin_anew(self, kept: list[Entry]) -> None:
        """Gives the disk back what is in the file now: it has these entries alone, and what is put from now on. Where it cannot be, all stays."""
        self._anew, self.size = kept, sum([len(entry.framed()) for entry in kept])
        self._write()

    def abandoned(self) -> list[Path]:
        """The spools of the folder that hold something and that nobody has, now and when this was last asked: one may be starting again."""
        before, self._free = self._free, frozenset(path for path in self.path.parent.glob("*.spool") if path.stat().st_size and _is_free(path))
        return sorted(before & self._free)

    async def close(self) -> None:
        """Waits for what is being written, and lets the file go."""
        if self._writing is not None:
            await self._writing
        os.close(self._descriptor)
        os.close(self._lock)

    def _put(self, kind: bytes, content: bytes, future: asyncio.Future[None] | None) -> None:
        framed = Entry(kind, content).framed()
        self._waiting.append((framed, future))
        self.size += len(framed)
        self._write()

    def _write(self) -> None:
        if self._writing is None or self._writing.done():
            self._writing = asyncio.get_running_loop().create_task(self._write_all())

    async def _write_all(self) -> None:
        """Writes what waits, all of it at once: what comes meanwhile shares the next sync."""
        while self._waiting or self._anew is not None:
            (waiting, self._waiting), (anew, self._anew) = (self._waiting, []), (self._anew, None)
            futures = [future for _, future in waiting if future is not None]
            failed: OSError | None = None
            try:
                if anew is not None:
                    self._descriptor = await asyncio.to_thread(_begun_anew, self.path, anew, self._descriptor)
                await asyncio.to_thread(_synced, self._descriptor, b"".join([content for content, _ in waiting]), bool(futures))
            except OSError as error:
                failed = error
            except RuntimeError as error:  # no thread can be started: who waits must not wait for ever
                failed = OSError(str(error))
            for future in futures:
                if future.done():
                    continue
                if failed is None:
                    future.set_result(None)
                else:
                    future.set_exception(failed)


def _locked(path: Path) -> int | None:
    """The lock of a spool, for as long as it is open; None if another process has it."""
    lock = os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    return lock


def _is_free(path: Path) -> bool:
    lock = _locked(path)
    if lock is None:
        return False
    os.close(lock)
    return True


def _synced(descriptor: int, content: bytes, sync: bool) -> None:
    """Appends. What a failed write left behind is cut off, so that later entries can be read."""
    end = os.lseek(descriptor, 0, os.SEEK_END)
    try:
        view = memoryview(content)
        while view:
            view = view[os.write(descriptor, view) :]
        if sync:
            os.fdatasync(descriptor)
    except OSError:
        os.ftruncate(descriptor, end)
        raise


def _begun_anew(path: Path, kept: list[Entry], descriptor: int) -> int:
    """The file with these entries alone; where that fails, the one that has its name, whichever it is: both have all that is needed."""
    try:
        fresh = _rewritten(path, kept)
    except OSError as error:
        journal.logger().warning("a spool cannot be written anew", path=str(path), reason=str(error))
        if os.path.samestat(os.fstat(descriptor), path.stat()):
            return descriptor
        fresh = os.open(path, os.O_RDWR | os.O_APPEND)
    os.close(descriptor)
    return fresh


def _rewritten(path: Path, kept: list[Entry]) -> int:
    """The file with these entries alone, in place of the one before, open to append."""
    draft = path.with_suffix(".draft")
    descriptor = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)
    try:
        _synced(descriptor, b"".join([entry.framed() for entry in kept]), True)
        draft.replace(path)
        on_disk(path.parent)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor
