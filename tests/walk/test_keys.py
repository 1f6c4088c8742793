"""API keys: kept as hashes alone, changed without a gap, forgotten at once, limited in rate and to cards."""

from __future__ import annotations

import asyncio
import errno
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from schemas.errors import SettingsError
from streams.authorize import serve
from streams.authorize.keys import Grant, Key, KeyFile, Keyring, Scope, hash_of, is_valid, new_key, with_local
from streams.cli import main

NOW_MS = 1_800_000_000_000


def carrying(key: str) -> list[tuple[bytes, bytes]]:
    """The headers of a request with this key."""
    return [(b"host", b"h"), (b"authorization", b"Bearer " + key.encode())]


def made(file: KeyFile, name: str = "host", **limits: Any) -> str:
    """A key that the file knows."""
    key = new_key()
    file.add(Grant(name=name, sha256=hash_of(key), scopes=(Scope.READ,), **limits))
    return key


def a_key(folder: Path, **limits: Any) -> Key:
    """A key of its own, as a door finds it."""
    file = KeyFile(folder)
    key = Keyring(again=file.changed).of(carrying(made(file, **limits)), NOW_MS)
    assert key is not None
    return key


def test_the_file_knows_a_key_only_by_its_hash_and_is_its_owners_alone(tmp_path: Path) -> None:
    key = made(KeyFile(tmp_path))
    assert key not in (tmp_path / "keys.json").read_text()
    assert (tmp_path / "keys.json").stat().st_mode & 0o077 == 0


def test_a_key_made_a_moment_ago_is_valid_beside_the_old_one_and_a_removed_one_is_not(tmp_path: Path) -> None:
    file = KeyFile(tmp_path)
    ring = Keyring(again=file.changed)
    old = made(file, "old")
    assert ring.of(carrying(old), NOW_MS) is not None
    new = made(file, "new")
    assert ring.of(carrying(new), NOW_MS) is not None
    assert ring.of(carrying(old), NOW_MS) is not None
    assert file.remove("old")
    ring.refresh()
    assert ring.of(carrying(old), NOW_MS) is None
    assert ring.of(carrying(new), NOW_MS) is not None
    for headers in ([], carrying("hf_guessed"), carrying(""), [(b"authorization", new.encode())], [(b"authorization", b"Basic " + new.encode())]):
        assert ring.of(headers, NOW_MS) is None


def test_after_a_rotation_both_keys_are_valid_until_the_old_one_ends(tmp_path: Path) -> None:
    file = KeyFile(tmp_path)
    ring = Keyring(again=file.changed)
    old = made(file, bins=("4",))
    new = file.rotate("host", NOW_MS + 1_000, NOW_MS)
    assert new is not None
    ring.refresh()
    assert [ring.of(carrying(key), NOW_MS + 999) is not None for key in (old, new)] == [True, True]
    assert [ring.of(carrying(key), NOW_MS + 1_000) is not None for key in (old, new)] == [False, True]
    assert {grant.bins for grant in file.grants()} == {("4",)}
    assert file.rotate("nobody", NOW_MS, NOW_MS) is None


def test_a_key_that_ends_has_a_successor_that_ends_after_the_same_time(tmp_path: Path) -> None:
    file = KeyFile(tmp_path)
    made(file, made_ms=NOW_MS, until_ms=NOW_MS + 5_000)
    for turn in (1, 2):
        file.rotate("host", NOW_MS + 9_000, NOW_MS + turn * 1_000)
    assert [grant.until_ms for grant in file.grants()] == [NOW_MS + 5_000, NOW_MS + 6_000, NOW_MS + 7_000]


def test_a_broken_file_takes_no_key_away_and_is_never_one_without_keys(tmp_path: Path) -> None:
    file = KeyFile(tmp_path)
    ring = Keyring(again=file.changed)
    key = made(file)
    assert ring.of(carrying(key), NOW_MS) is not None
    (tmp_path / "keys.json").write_text("{")
    ring.refresh()
    assert ring.of(carrying(key), NOW_MS) is not None
    with pytest.raises(SettingsError):
        file.grants()


def test_a_file_that_could_not_be_read_once_is_read_the_next_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = KeyFile(tmp_path)
    ring = Keyring(again=file.changed)
    key = made(file)
    assert ring.of(carrying(key), NOW_MS) is not None
    file.remove("host")

    def too_many(_: Path) -> bytes:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "read_bytes", too_many)
        ring.refresh()
    ring.refresh()
    assert ring.of(carrying(key), NOW_MS) is None


def test_a_bucket_gives_its_burst_and_then_its_rate(tmp_path: Path) -> None:
    key = a_key(tmp_path, per_s=2.0, burst=3)
    assert [key.takes(100.0) for _ in range(4)] == [True, True, True, False]
    assert key.wait_s == 1
    assert [key.takes(100.5), key.takes(100.5)] == [True, False]


def test_a_key_of_a_card_range_covers_no_other_card_and_not_none(tmp_path: Path) -> None:
    key = a_key(tmp_path / "a", bins=("4111",))
    assert [key.covers(card) for card in ("411111", "511111", "411", None)] == [True, False, False, False]
    assert a_key(tmp_path / "b").covers(None)


def test_when_a_key_was_used_last_is_kept_by_whoever_saw_it_later(tmp_path: Path) -> None:
    file = KeyFile(tmp_path)
    file.note({"a": 5, "b": 7})
    file.note({"a": 4, "b": 9})
    assert file.used() == {"a": 5, "b": 9}
    assert a_key(tmp_path).used_ms == NOW_MS


def test_a_key_is_revoked_also_where_nobody_can_note_when_keys_were_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = KeyFile(tmp_path)
    ring = Keyring(again=file.changed)
    key = made(file)
    (tmp_path / "used.json").mkdir()
    monkeypatch.setattr(serve, "REFRESH_S", 0.001)
    monkeypatch.setattr(serve, "NOTED_EVERY", 1)

    async def main() -> None:
        keeping = asyncio.create_task(serve._keep(ring, file))
        assert ring.of(carrying(key), NOW_MS) is not None
        await asyncio.sleep(0.1)
        file.remove("host")
        async with asyncio.timeout(5):
            while ring.of(carrying(key), NOW_MS) is not None:
                await asyncio.sleep(0.01)
        keeping.cancel()

    asyncio.run(main())
    assert file.used() == {}


def test_a_system_makes_itself_a_key_once_and_not_again_after_it_was_revoked(tmp_path: Path) -> None:
    with_local(tmp_path, "hf_own")
    assert is_valid(tmp_path, "hf_own")
    KeyFile(tmp_path).remove("local")
    with_local(tmp_path, "hf_own")
    assert not is_valid(tmp_path, "hf_own")


def test_people_make_list_rotate_and_revoke_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("HOLDFAST_DATA_DIR", str(tmp_path))

    def said(*argv: str, status: int = 0) -> str:
        assert main(["keys", *argv]) == status
        return capsys.readouterr().out.strip()

    key = said("create", "shop", "--scope", "authorize", "--scope", "read", "--bin", "4111", "--per-s", "50")
    assert is_valid(tmp_path / "keys", key)
    said("create", "shop", "--scope", "read", status=2)
    (row,) = json.loads(said("list", "--json"))["keys"]
    assert (row["name"], row["scopes"], row["bins"], row["per_s"], row["used_ms"]) == ("shop", ["authorize", "read"], ["4111"], 50, None)
    rotated = said("rotate", "shop")
    assert is_valid(tmp_path / "keys", rotated)
    assert "shop" in said("list")
    assert key not in said("list")
    assert said("revoke", "shop") == "revoked: shop"
    assert not is_valid(tmp_path / "keys", rotated)
    said("revoke", "shop", status=1)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("create", "new", "--scope", "read", "--per-s", "inf"), "--per-s: 'inf' is not a number from 0 on"),
        (("create", "new", "--scope", "read", "--days", "nan"), "--days: 'nan' is not a number from 0 on"),
        (("create", "new", "--scope", "read", "--days", "1e12"), "until_ms"),
        (("create", "new", "--scope", "read", "--bin", "\u0664"), "--bin takes 1 to 6 digits"),
        (("create", "new", "--scope", "read", "--bin", "4111111"), "--bin takes 1 to 6 digits"),
        (("rotate", "host", "--overlap-hours", "1e300"), "until_ms"),
        (("rotate", "host", "--overlap-hours", "-1"), "--overlap-hours: '-1' is not a number from 0 on"),
    ],
)
def test_a_key_that_could_not_be_read_again_is_refused_and_those_before_it_stay(
    argv: tuple[str, ...], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOLDFAST_DATA_DIR", str(tmp_path))
    key = made(KeyFile(tmp_path / "keys"))
    with suppress(SystemExit):
        assert main(["keys", *argv]) == 2
    assert said in capsys.readouterr().err
    assert is_valid(tmp_path / "keys", key)
    assert [grant.until_ms for grant in KeyFile(tmp_path / "keys").grants()] == [None]
