"""The data folder of a system started here: who owns it, which ports and secrets it keeps, and what of it runs now."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import random
import secrets
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec

from models.artefact import Keys, public_of
from models.registry import on_disk
from schemas.errors import SettingsError
from schemas.identity import keyed_token
from streams.authorize.keys import new_key
from streams.parts import Seen
from streams.ready import write_first, write_whole
from streams.settings import ROWS, Settings, settings_from

PORTS = range(20_000, 32_000)
"""Below Linux's ephemeral range (32768 up), so that no outgoing connection takes a port between its choice and its use."""
SOCKET_PATH_MAX = 100
"""Of a Unix socket: the system allows 107 bytes."""
SECRETS = ("token_key", "model_key", "api_key")
"""Secrets that are made once for a data folder, where nobody gave them."""
NEEDED = ("token_key", "model_public_key")
"""What an app cannot run without."""


class Remembered(msgspec.Struct):
    """What a second start in this folder does as the first one did."""

    broker_kind: str
    brokers: int
    ports: dict[str, int] = msgspec.field(default_factory=dict)
    tokens: dict[str, str] = msgspec.field(default_factory=dict)
    """By the id of each key, a token that it made: the same id is the same key."""


class State(msgspec.Struct, frozen=True):
    """What `holdfast ps` shows: the supervisor, the settings of its apps (no secrets), and its parts."""

    pid: int
    started_at_ms: int
    environ: dict[str, str]
    parts: tuple[Seen, ...]
    apps: tuple[str, ...] = ()
    """The apps that are to run: those that are not among the parts are yet to be started."""


SANDBOX = "sandbox"
"""The file that says of a data folder that `holdfast sandbox` made it."""


def is_sandbox(settings: Settings) -> bool:
    """Whether test cards decide here. SettingsError where that is asked for with a real Kafka, or in a folder that no sandbox was made in."""
    if settings.sandbox == "off":
        return False
    if settings.broker_kind != "embedded":
        raise SettingsError("HOLDFAST_SANDBOX: test cards decide on the embedded broker alone: no real Kafka takes what they force")
    if not (settings.data_dir / SANDBOX).is_file():
        raise SettingsError(f"HOLDFAST_SANDBOX: {settings.data_dir} is the folder of no sandbox (`holdfast sandbox` makes one)")
    return True


def made(data_dir: Path) -> None:
    """Makes the folder where it is not there. SettingsError where there cannot be one."""
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(f"{data_dir}: {error.strerror}; HOLDFAST_DATA_DIR or --data names another folder") from None


@contextlib.contextmanager
def owned(data_dir: Path) -> Iterator[None]:
    """Holds the folder for this process, until it leaves or dies. SettingsError when another one holds it."""
    made(data_dir)
    lock = os.open(data_dir / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    with held(lock, f"{data_dir}: a system runs in this folder already (`holdfast ps --data {data_dir}` shows it)"):
        yield


@contextlib.contextmanager
def held(descriptor: int, refusal: str) -> Iterator[None]:
    """Holds what was opened for this process, until it leaves or dies, and closes it. SettingsError, with this text, when another one holds it."""
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SettingsError(refusal) from None
        yield
    finally:
        os.close(descriptor)


def is_owned(data_dir: Path) -> bool:
    """Whether a live process holds the folder."""
    try:
        descriptor = os.open(data_dir / "lock", os.O_RDWR)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def held_in(data_dir: Path) -> Remembered | None:
    """What kind of system the folder holds the data of; None for a fresh one. SettingsError where that cannot be read: it is not taken for none."""
    path = data_dir / "remembered.json"
    try:
        return msgspec.json.decode(path.read_bytes(), type=Remembered) if path.exists() else None
    except msgspec.DecodeError as error:
        raise SettingsError(f"{path}: damaged ({error}); put a copy back: it says with which brokers and keys this folder was started") from None


def remembered(settings: Settings, brokers: int) -> Remembered:
    """What the folder remembers, or a fresh memory. SettingsError when it was started in another way, which its data would not survive."""
    kind, key_id = settings.broker_kind, settings.token_key_id
    kept = held_in(settings.data_dir) or Remembered(kind, brokers)
    if (kept.broker_kind, kept.brokers) != (kind, brokers):
        raise SettingsError(
            f"{settings.data_dir}: holds the data of a system with {kept.brokers} {kept.broker_kind} broker(s), not {brokers} {kind}; "
            "give another folder (--data)"
        )
    token = keyed_token(settings.token_key.encode(), key_id, "key", "")
    if kind == "kafka" and kept.tokens.setdefault(key_id, token) != token:
        raise SettingsError(
            f"HOLDFAST_TOKEN_KEY: not the key {key_id!r} that {settings.data_dir} was started with, by which all its cards and devices are "
            f"known; give that one, put {kept_secret(settings.data_dir, 'token_key')} back, or give the new one another HOLDFAST_TOKEN_KEY_ID"
        )
    return kept


def keep(data_dir: Path, memory: Remembered) -> None:
    """Writes what the folder is to remember."""
    write_whole(data_dir / "remembered.json", msgspec.json.encode(memory))


def port_of(memory: Remembered, name: str) -> int:
    """The port remembered under `name`, if it is still free; else a free one, which is then remembered."""
    port = memory.ports.get(name, 0)
    if not port or not is_free(port):
        taken = set(memory.ports.values())
        port = next(port for port in random.sample(PORTS, len(PORTS)) if port not in taken and is_free(port))
        memory.ports[name] = port
    return port


def is_free(port: int, host: str = "127.0.0.1") -> bool:
    """Whether a server could listen there."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError:
            return False
    return True


def socket_path(data_dir: Path, name: str) -> Path:
    """A Unix socket's path for this folder: in the folder, or, where that is too long, in one of its own under the temporary folder."""
    path = data_dir / name
    if len(os.fsencode(path)) <= SOCKET_PATH_MAX:
        return path
    short = Path(tempfile.gettempdir()) / f"holdfast-{os.getuid()}-{hashlib.sha256(os.fsencode(data_dir)).hexdigest()[:16]}"
    short.mkdir(mode=0o700, exist_ok=True)
    if short.stat().st_uid != os.getuid():
        raise SettingsError(f"{short}: belongs to another user")
    return short / name


def required_keys(settings: Settings) -> None:
    """SettingsError naming each key that is missing: without them tokens could be guessed, and no model could be checked."""
    given = settings.changed(model_public_key=settings.model_public_key or settings.model_key)
    missing = [row.variable for row in ROWS if row.name in NEEDED and not getattr(given, row.name)]
    if missing:
        raise SettingsError(
            f"{', '.join(missing)}: not given, as a value or as a file; a system of `holdfast up` has its keys in the `secrets` of its data folder"
        )


def kept_secret(data_dir: Path, name: str) -> Path:
    """The file in which a folder keeps a secret that nobody gave."""
    return data_dir / "secrets" / name


def with_kept_secrets(settings: Settings) -> Settings:
    """The settings with the secrets that nobody gave: those of the data folder, made at random the first time, readable by this user only, and on
    the disk before anybody is known by them.

    Where a public key was given and no private one, nothing is signed here: no private key is made.
    """
    made(settings.data_dir)
    kept_secret(settings.data_dir, "").mkdir(mode=0o700, parents=True, exist_ok=True)
    for name in SECRETS:
        if not getattr(settings, name):
            path = kept_secret(settings.data_dir, name)
            if not path.exists():
                if name == "model_key" and settings.model_public_key:
                    continue
                write_first(path, (new_key() if name == "api_key" else secrets.token_hex(32)).encode(), 0o600)
                on_disk(path)
                on_disk(path.parent)
            settings = settings.changed(**{name: path.read_text(encoding="utf-8")})
    return settings


def keys_of(settings: Settings) -> Keys:
    """The keys of models and policies. SettingsError where there is neither a public nor a private one."""
    if not settings.model_public_key and not settings.model_key:
        raise SettingsError("HOLDFAST_MODEL_PUBLIC_KEY: not given; models cannot be checked without it")
    private = bytes.fromhex(settings.model_key)
    return Keys(bytes.fromhex(settings.model_public_key) or public_of(private), private)


def write_state(settings: Settings, started_at_ms: int, parts: tuple[Seen, ...], apps: tuple[str, ...]) -> None:
    """Writes `state.json`, whole."""
    secret = {row.variable for row in ROWS if row.secret}
    environ = {name: value for name, value in settings.as_environ().items() if name not in secret}
    state = State(os.getpid(), started_at_ms, environ, parts, apps)
    write_whole(settings.data_dir / "state.json", msgspec.json.format(msgspec.json.encode(state)))


def state_of(data_dir: Path) -> State | None:
    """What `state.json` says; None where no system was ever started. Whether one runs *now* is `is_owned`. SettingsError where it cannot be read."""
    path = data_dir / "state.json"
    try:
        return msgspec.json.decode(path.read_bytes(), type=State)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except msgspec.DecodeError as error:
        raise SettingsError(f"{path}: damaged ({error}); `holdfast up` writes it anew when it is started") from None


def running_settings(settings: Settings) -> Settings | None:
    """The settings of the system that runs in `settings.data_dir`, for another command to reach it; None if none runs there."""
    state = state_of(settings.data_dir) if is_owned(settings.data_dir) else None
    if state is None:
        return None
    secret = {row.name: getattr(settings, row.name) for row in ROWS if row.secret and getattr(settings, row.name)}
    return with_kept_secrets(settings_from(state.environ).changed(**secret))
