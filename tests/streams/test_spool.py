"""The spool: what was kept is there after a crash at any byte, and two processes do not share one."""

from __future__ import annotations

import asyncio
import errno
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams import spool as module
from streams.spool import DONE, KEPT, Entry, Spool, entries_in


def test_what_was_appended_is_there_after_a_crash(tmp_path: Path) -> None:
    async def play() -> None:
        spool, _ = Spool.opened(tmp_path, list)
        await asyncio.gather(*(spool.append(KEPT, b"%d" % number) for number in range(100)))
        assert [content for _, content in entries_in(spool.path.read_bytes())] == [b"%d" % number for number in range(100)]
        spool.note(DONE, b"7")
        await spool.close()
        kept, entries = Spool.opened(tmp_path, lambda found: [entry for entry in found if entry.content == b"7"])
        assert entries == [Entry(KEPT, b"7"), Entry(DONE, b"7")]
        await kept.close()
        assert list(entries_in(kept.path.read_bytes())) == entries

    asyncio.run(play())


def test_a_second_process_has_a_spool_of_its_own(tmp_path: Path) -> None:
    async def play() -> None:
        one, _ = Spool.opened(tmp_path, list)
        await one.append(KEPT, b"mine")
        other, entries = Spool.opened(tmp_path, list)
        assert entries == []
        assert other.path != one.path
        await other.close()
        await one.close()

    asyncio.run(play())


@given(st.lists(st.binary(max_size=20), max_size=6), st.data())
def test_a_file_that_was_cut_off_gives_its_whole_entries(contents: list[bytes], data: st.DataObject) -> None:
    framed = [Entry(KEPT, content).framed() for content in contents]
    end = data.draw(st.integers(0, sum(map(len, framed))))
    whole = sum(1 for number in range(len(framed)) if sum(map(len, framed[: number + 1])) <= end)
    assert [entry.content for entry in entries_in(b"".join(framed)[:end])] == contents[:whole]


def test_the_disk_gets_back_what_is_needed_no_more_and_loses_nothing_that_comes_meanwhile(tmp_path: Path) -> None:
    async def play() -> None:
        spool, _ = Spool.opened(tmp_path, list)
        await asyncio.gather(*(spool.append(KEPT, b"x" * 1_000) for _ in range(100)))
        meanwhile = spool.append(KEPT, b"before")
        spool.begin_anew([Entry(KEPT, b"needed")])
        await asyncio.gather(meanwhile, spool.append(KEPT, b"after"))
        assert [content for _, content in entries_in(spool.path.read_bytes())] == [b"needed", b"before", b"after"]
        assert spool.size < 1_000
        await spool.append(KEPT, b"later")
        await spool.close()
        assert [content for _, content in entries_in(spool.path.read_bytes())] == [b"needed", b"before", b"after", b"later"]

    asyncio.run(play())


@pytest.mark.parametrize(("fails", "kept"), [("_synced", [b"old", b"new"]), ("on_disk", [b"needed", b"new"])])
def test_where_the_disk_does_not_take_it_anew_the_file_that_has_its_name_goes_on(
    fails: str, kept: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rewritten = module._rewritten

    def on_a_bad_disk(*words: Any) -> int:
        with monkeypatch.context() as bad:
            bad.setattr(module, fails, full)
            return rewritten(*words)

    async def play() -> None:
        spool, _ = Spool.opened(tmp_path, list)
        await spool.append(KEPT, b"old")
        monkeypatch.setattr(module, "_rewritten", on_a_bad_disk)
        spool.begin_anew([Entry(KEPT, b"needed")])
        await spool.append(KEPT, b"new")
        await spool.close()
        assert [content for _, content in entries_in(spool.path.read_bytes())] == kept

    asyncio.run(play())


def test_where_no_thread_can_be_started_what_waits_is_told_so_and_what_comes_later_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def none_left(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    async def play() -> None:
        spool, _ = Spool.opened(tmp_path, list)
        with monkeypatch.context() as busy:
            busy.setattr(asyncio, "to_thread", none_left)
            with pytest.raises(OSError, match="can't start new thread"):
                await asyncio.wait_for(spool.append(KEPT, b"lost"), 1)
        await spool.append(KEPT, b"later")
        await spool.close()
        assert [content for _, content in entries_in(spool.path.read_bytes())] == [b"later"]

    asyncio.run(play())


def full(*_: object) -> None:
    """A disk that takes nothing."""
    raise OSError(errno.ENOSPC, "No space left on device")
