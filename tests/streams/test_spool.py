"""The spool: what was kept is there after a crash at any byte, and two processes do not share one."""

from __future__ import annotations

import asyncio
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

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
