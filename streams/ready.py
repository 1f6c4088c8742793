"""How an app tells the stack that it is ready: a small file with its process id, which counts only while that process lives."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import msgspec

from streams.settings import Settings


class Ready(msgspec.Struct, frozen=True):
    """What the file says. `pid` ties it to one life of the app: a file left by an earlier life says nothing."""

    pid: int


def ready_file(settings: Settings, app: str) -> Path:
    """Where `app` says that it is ready."""
    return settings.data_dir / "ready" / app


def tell_ready(settings: Settings, app: str) -> None:
    """Says that this process, running `app`, now does its work. To be called once, when it does and not before."""
    path = ready_file(settings, app)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, msgspec.json.encode(Ready(os.getpid())))


def forget_ready(settings: Settings, app: str) -> None:
    """Takes the word back, before a start."""
    ready_file(settings, app).unlink(missing_ok=True)


def is_ready(settings: Settings, app: str, pid: int) -> bool:
    """Whether the process `pid` has said that it is ready as `app`."""
    try:
        return msgspec.json.decode(ready_file(settings, app).read_bytes(), type=Ready).pid == pid
    except (OSError, msgspec.DecodeError):
        return False


def write_whole(path: Path, contents: bytes, mode: int = 0o644) -> None:
    """Writes a file so that a reader sees all of it or the one before, never a part."""
    _draft(path, contents, mode).replace(path)


def write_first(path: Path, contents: bytes, mode: int = 0o644) -> None:
    """Writes a file whole, unless it is there: of several processes that write it at once the first one's stands."""
    draft = _draft(path, contents, mode)
    try:
        with suppress(FileExistsError):
            os.link(draft, path)
    finally:
        draft.unlink()


def _draft(path: Path, contents: bytes, mode: int) -> Path:
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(contents)
    return draft
