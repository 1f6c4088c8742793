"""Settings: one table, read from the environment and from secret files; a mistake names its variable."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import SettingsError
from streams.folder import held_in, is_free, owned, running_settings, state_of, with_kept_secrets
from streams.metrics import serve
from streams.run import run
from streams.sandbox import its_settings
from streams.settings import ROWS, Settings, librdkafka, settings_from, table


def test_nothing_given_is_the_defaults() -> None:
    assert settings_from({"PATH": "/bin"}) == Settings()


def test_each_setting_has_a_meaning_and_a_line_in_the_table() -> None:
    lines = table().splitlines()
    assert len(lines) == len(ROWS) + 2
    for row, line in zip(ROWS, lines[2:], strict=True):
        assert row.meaning
        assert line.startswith(f"| `HOLDFAST_{row.name.upper()}` |")
        assert ("secret" in line.split("|")[2]) == row.secret


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("HOLDFAST_HTTP_PORT", "eighty"),
        ("HOLDFAST_HTTP_PORT", "65536"),
        ("HOLDFAST_HTTP_PORT", ""),
        ("HOLDFAST_BROKER_KIND", "rabbit"),
        ("HOLDFAST_KAFKA_BOOTSTRAP", ""),
        ("HOLDFAST_KAFKA_BOOTSTRAP", "localhost"),
        ("HOLDFAST_KAFKA_BOOTSTRAP", "localhost:9092,"),
        ("HOLDFAST_REDIS_URL", "localhost"),
        ("HOLDFAST_REDIS_URL", "redis://localhost:65536"),
        ("HOLDFAST_REDIS_URL", "redis://user:secret@host:1"),
        ("HOLDFAST_DATA_DIR", ""),
        ("HOLDFAST_DATA_DIR", "~nobody-of-this-name/holdfast"),
        ("HOLDFAST_ARCHIVE_DIR", "~nobody-of-this-name/holdfast"),
        ("HOLDFAST_PRODUCE_TIMEOUT_MS", "0"),
        ("HOLDFAST_HTPP_PORT", "80"),
        ("HOLDFAST_HTTP_PORT_FILE", "/etc/hostname"),
        ("HOLDFAST_TOKEN_KEY_FILE", "/no/such/file"),
    ],
)
def test_a_mistake_names_its_variable(variable: str, value: str) -> None:
    with pytest.raises(SettingsError, match=variable):
        settings_from({variable: value})


@pytest.mark.parametrize(
    ("environ", "variable"),
    [
        ({"HOLDFAST_KAFKA_PROTOCOL": "SASL_SSL", "HOLDFAST_KAFKA_PASSWORD": "x"}, "HOLDFAST_KAFKA_USERNAME"),
        ({"HOLDFAST_KAFKA_PROTOCOL": "SASL_PLAINTEXT", "HOLDFAST_KAFKA_USERNAME": "x"}, "HOLDFAST_KAFKA_PASSWORD"),
        ({"HOLDFAST_KAFKA_PROTOCOL": "SSL", "HOLDFAST_KAFKA_CA_FILE": "/no/such/file"}, "HOLDFAST_KAFKA_CA_FILE"),
        ({"HOLDFAST_KAFKA_PROTOCOL": "SSL", "HOLDFAST_KAFKA_CA_FILE": __file__}, "HOLDFAST_KAFKA_CA_FILE"),
    ],
)
def test_what_reaches_no_broker_names_its_variable(environ: dict[str, str], variable: str) -> None:
    with pytest.raises(SettingsError, match=variable):
        librdkafka(settings_from(environ))


def test_an_app_that_cannot_listen_or_has_no_folder_names_the_setting(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(SettingsError, match="HOLDFAST_METRICS_PORT"):
            serve(Settings(data_dir=tmp_path, metrics_port=taken.getsockname()[1]))
    (tmp_path / "file").touch()
    settings = Settings(data_dir=tmp_path / "file")
    for command in (lambda: run(["ledger"], settings), lambda: with_kept_secrets(settings), lambda: its_settings(settings, settings.data_dir)):
        with pytest.raises(SettingsError, match="HOLDFAST_DATA_DIR"):
            command()
    assert state_of(settings.data_dir) is None


@pytest.mark.parametrize("content", ["", '{"pid":', "[]", '{"broker_kind":1}'])
def test_a_damaged_file_of_the_data_folder_is_named(tmp_path: Path, content: str) -> None:
    for name in ("state.json", "remembered.json"):
        (tmp_path / name).write_text(content)
    with pytest.raises(SettingsError, match=f"{tmp_path}/remembered.json: damaged"):
        held_in(tmp_path)
    with owned(tmp_path), pytest.raises(SettingsError, match=f"{tmp_path}/state.json: damaged"):
        running_settings(Settings(data_dir=tmp_path))


def test_a_secret_outlives_a_power_failure_before_anybody_is_known_by_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, synced = os.fsync, set[int]()

    def seen(descriptor: int) -> None:
        synced.add(os.fstat(descriptor).st_ino)
        real(descriptor)

    monkeypatch.setattr(os, "fsync", seen)
    with_kept_secrets(Settings(data_dir=tmp_path))
    secrets = [*(tmp_path / "secrets").iterdir()]
    assert len(secrets) == 3
    assert {path.stat().st_ino for path in (*secrets, tmp_path / "secrets")} <= synced


def test_a_mistyped_name_is_told_the_right_one() -> None:
    with pytest.raises(SettingsError, match=r"did you mean HOLDFAST_HTTP_PORT\?"):
        settings_from({"HOLDFAST_HTTP_PRT": "80"})


def test_a_secret_may_come_from_a_file_without_its_line_break(tmp_path: Path) -> None:
    (tmp_path / "key").write_text(" a key \n")
    assert settings_from({"HOLDFAST_TOKEN_KEY_FILE": str(tmp_path / "key")}).token_key == " a key "


def test_a_secret_given_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("a")
    with pytest.raises(SettingsError, match="HOLDFAST_TOKEN_KEY: given both"):
        settings_from({"HOLDFAST_TOKEN_KEY": "a", "HOLDFAST_TOKEN_KEY_FILE": str(tmp_path / "key")})


def test_a_secret_is_never_shown() -> None:
    settings = settings_from({"HOLDFAST_TOKEN_KEY": "hunter2", "HOLDFAST_KAFKA_PASSWORD": "hunter2"})
    assert "hunter2" not in repr(settings) + str(settings) + table()


@given(st.builds(dict, http_port=st.integers(0, 65_535), token_key=st.text(max_size=9), unknown_account=st.sampled_from(("decline", "hold"))))
def test_a_child_process_gets_the_same_settings(changes: dict[str, object]) -> None:
    settings = Settings().changed(**changes)
    assert settings_from(settings.as_environ()) == settings


def test_folders_are_absolute_and_move_with_the_data_folder(tmp_path: Path) -> None:
    settings = Settings(data_dir=Path("here"))
    assert settings.registry_dir == Path.cwd() / "here" / "registry"
    assert settings.changed(data_dir=tmp_path).registry_dir == tmp_path / "registry"
    assert settings.changed(registry_dir=Path("/elsewhere")).changed(data_dir=tmp_path).registry_dir == Path("/elsewhere")


def test_a_change_is_checked_like_a_variable() -> None:
    with pytest.raises(SettingsError, match="HOLDFAST_HTTP_PORT"):
        Settings().changed(http_port=-1)
    with pytest.raises(SettingsError, match="no_such"):
        Settings().changed(no_such=1)


@pytest.mark.parametrize(("host", "shown"), [("127.0.0.1", "127.0.0.1"), ("::1", "[::1]")])
def test_a_service_may_listen_on_either_protocol(host: str, shown: str) -> None:
    assert Settings(http_host=host).http_url == f"http://{shown}:8080"
    try:
        listener = socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        pytest.skip(f"this machine cannot listen at {host}: {error}")
    with listener:
        port = listener.getsockname()[1]
        assert not is_free(port, host)
    assert is_free(port, host)
