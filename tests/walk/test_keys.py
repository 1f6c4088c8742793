"""API keys: kept as hashes alone, changed without a gap, forgotten at once, limited in rate and to cards."""

from __future__ import annotations

from pathlib import Path

import pytest

from schemas.errors import SettingsError
from streams.authorize.keys import Key, KeyFile, Keyring, Scope


def carrying(key: str) -> list[tuple[bytes, bytes]]:
    """The headers of a request with this key."""
    return [(b"host", b"h"), (b"authorization", b"Bearer " + key.encode())]


def a_key(path: Path, per_s: float = 0.0, burst: int = 1_000, bins: tuple[str, ...] = ()) -> Key:
    """A key of its own, as a door finds it."""
    file = KeyFile(path)
    key = Keyring(again=file.changed).of(carrying(file.add("host", [Scope.AUTHORIZE], bins, per_s, burst)))
    assert key is not None
    return key


def test_the_file_knows_a_key_only_by_its_hash_and_is_its_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    key = KeyFile(path).add("host", [Scope.AUTHORIZE])
    assert key not in path.read_text()
    assert path.stat().st_mode & 0o077 == 0


def test_a_key_made_a_moment_ago_is_valid_beside_the_old_one_and_a_removed_one_is_not(tmp_path: Path) -> None:
    file = KeyFile(tmp_path / "keys.json")
    ring = Keyring(again=file.changed)
    old = file.add("old", [Scope.READ])
    assert ring.of(carrying(old)) is not None
    new = file.add("new", [Scope.READ])
    assert ring.of(carrying(new)) is not None
    assert ring.of(carrying(old)) is not None
    assert file.remove("old")
    ring.refresh()
    assert ring.of(carrying(old)) is None
    assert ring.of(carrying(new)) is not None
    assert ring.of([]) is None
    assert ring.of(carrying("hf_guessed")) is None


def test_a_broken_file_takes_no_key_away_and_is_never_one_without_keys(tmp_path: Path) -> None:
    file = KeyFile(tmp_path / "keys.json")
    ring = Keyring(again=file.changed)
    key = file.add("host", [Scope.READ])
    assert ring.of(carrying(key)) is not None
    (tmp_path / "keys.json").write_text("{")
    ring.refresh()
    assert ring.of(carrying(key)) is not None
    with pytest.raises(SettingsError):
        file.grants()


def test_a_bucket_gives_its_burst_and_then_its_rate(tmp_path: Path) -> None:
    key = a_key(tmp_path / "keys.json", per_s=2.0, burst=3)
    assert [key.takes(100.0) for _ in range(4)] == [True, True, True, False]
    assert [key.takes(100.5), key.takes(100.5)] == [True, False]


def test_a_key_of_a_card_range_covers_no_other_card_and_not_none(tmp_path: Path) -> None:
    key = a_key(tmp_path / "keys.json", bins=("4111",))
    assert [key.covers(card) for card in ("411111", "511111", None)] == [True, False, False]
    assert a_key(tmp_path / "other.json").covers(None)


def test_when_a_key_was_used_last_is_kept_by_whoever_saw_it_later(tmp_path: Path) -> None:
    file = KeyFile(tmp_path / "keys.json")
    file.note({"a": 5, "b": 7})
    file.note({"a": 4, "b": 9})
    assert file.used() == {"a": 5, "b": 9}
