"""Keys are never empty by accident: what needs one says which is missing, or takes that of the data folder."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from schemas.errors import SettingsError
from schemas.identity import keyed_token
from streams import backfill as backfill_job
from streams import folder as data_folder
from streams.folder import required_keys, with_kept_secrets
from streams.settings import Settings, settings_from
from streams.stack import Stack

MAPPING = """
[fields]
transaction_id = "ref"
[tokens]
account_id = "account"
[time]
column = "when"
format = "epoch_ms"
[amount]
column = "sum"
currency = "EUR"
[constants]
kind = "ecommerce"
"""


@pytest.mark.parametrize(
    ("given", "missing"),
    [
        ({}, ["HOLDFAST_TOKEN_KEY", "HOLDFAST_MODEL_PUBLIC_KEY"]),
        ({"HOLDFAST_TOKEN_KEY": "t"}, ["HOLDFAST_MODEL_PUBLIC_KEY"]),
        ({"HOLDFAST_MODEL_KEY": "5a" * 32, "HOLDFAST_TOKEN_KEY": ""}, ["HOLDFAST_TOKEN_KEY"]),
    ],
)
def test_a_key_that_is_not_given_is_named(given: dict[str, str], missing: list[str]) -> None:
    with pytest.raises(SettingsError) as caught:
        required_keys(settings_from(given))
    assert [name for name in ("HOLDFAST_TOKEN_KEY", "HOLDFAST_MODEL_PUBLIC_KEY") if name in str(caught.value)] == missing


def test_the_keys_of_a_data_folder_are_keys(tmp_path: Path) -> None:
    required_keys(with_kept_secrets(Settings(data_dir=tmp_path)))


def test_a_key_id_stands_for_one_key_as_long_as_the_log_lasts(tmp_path: Path) -> None:
    def started(**given: str) -> None:
        stack = Stack(with_kept_secrets(Settings(data_dir=tmp_path, **given)), 1, print, ())
        stack.remember()
        stack.close()

    started()
    started()
    kept = data_folder.kept_secret(tmp_path, "token_key")
    first = kept.read_text()
    kept.unlink()  # the folder was put back without its secrets
    with pytest.raises(SettingsError, match=f"HOLDFAST_TOKEN_KEY: not the key 'k1' that {tmp_path} was started with"):
        started()
    started(token_key_id="k2")
    started(token_key=first)


def test_of_two_commands_that_make_a_folders_keys_at_once_the_first_ones_stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, real = Settings(data_dir=tmp_path), data_folder.write_first
    others = dict.fromkeys(data_folder.SECRETS, "")

    def second(path: Path, contents: bytes, mode: int) -> None:
        others[path.name] = "0f" * 32
        real(path, others[path.name].encode(), mode)
        real(path, contents, mode)

    monkeypatch.setattr(data_folder, "write_first", second)
    mine = with_kept_secrets(settings)
    assert {name: getattr(mine, name) for name in data_folder.SECRETS} == others
    assert {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "secrets").iterdir()} == dict.fromkeys(data_folder.SECRETS, 0o600)


def backfilled_account(folder: Path, settings: Settings) -> str:
    """The token of the account in a backfill of one payment."""
    (folder / "t.csv").write_text("ref,account,when,sum\nr-1,a-1,1700000000000,5.00\n")
    (folder / "m.toml").write_text(MAPPING)
    assert backfill_job.backfill([str(folder / "t.csv"), "--map", str(folder / "m.toml"), "--out", str(folder / "out")], settings) == 0
    return str(pq.read_table(folder / "out" / backfill_job.FEATURES_FILE)["account_id"][0])


def test_a_backfill_makes_the_tokens_of_the_door_in_the_same_data_folder(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path / "data")
    account = backfilled_account(tmp_path, settings)
    assert account == keyed_token(with_kept_secrets(settings).token_key.encode(), "k1", "acc", "a-1")


def test_a_backfill_with_a_key_of_its_own_needs_no_data_folder(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path / "data", token_key="the bank's")
    assert backfilled_account(tmp_path, settings) == keyed_token(b"the bank's", "k1", "acc", "a-1")
    assert not settings.data_dir.exists()
