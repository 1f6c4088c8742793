"""API keys: who may ask what over HTTP, how often, for which cards. Only a key's SHA-256 is kept; the key itself is shown once, when made."""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import math
import os
import secrets
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import msgspec

from schemas.errors import SettingsError
from schemas.record import EpochMs, Id, Record, Word, doc, like
from streams.clock import clock_ms
from streams.ready import write_whole

LOCAL = "local"
"""The name of the key that a system makes for whom it runs for."""
CARD_RANGE = r"^[0-9]{1,6}\Z"
"""What a key's cards may begin with. Decisions keep six digits of a card: by more, nobody could say later whose card it was."""


class Scope(Word):
    """What a key may do."""

    AUTHORIZE = "authorize"
    CAPTURE = "capture"
    READ = "read"
    RESTRICT = "restrict"
    EXPLAIN = "explain"
    ADMIN = "admin"


class Grant(Record, frozen=True, kw_only=True):
    """One key, by its SHA-256. Several of one name may be valid at once, so that a key is changed without a gap."""

    name: Annotated[Id, doc("names the key to people")]
    sha256: Annotated[str, like("[0-9a-f]{64}"), doc("of the key")]
    scopes: Annotated[tuple[Scope, ...], doc("what it may do; `admin` is all of it")]
    bins: Annotated[tuple[str, ...], doc("what its cards' numbers begin with; empty: any card, or none")] = ()
    per_s: Annotated[float, msgspec.Meta(ge=0), doc("requests a second in the long run, at each process; 0: no limit")] = 0.0
    burst: Annotated[int, msgspec.Meta(ge=1), doc("requests at once, after a pause")] = 1_000
    made_ms: Annotated[EpochMs, doc("when it was made, milliseconds since 1970-01-01 UTC")] = 0
    until_ms: Annotated[EpochMs | None, doc("from when on it is not valid; null: until it is revoked")] = None


class Key:
    """A grant and what its bucket holds: `burst` tokens at most, filled at `per_s`, one for each request."""

    __slots__ = ("_filled_s", "_tokens", "digest", "grant", "scopes", "used_ms")

    def __init__(self, grant: Grant) -> None:
        self.grant, self.digest = grant, bytes.fromhex(grant.sha256)
        self.scopes = frozenset(Scope) if Scope.ADMIN in grant.scopes else frozenset(grant.scopes)
        self.used_ms = 0
        self._tokens, self._filled_s = float(grant.burst), 0.0

    def takes(self, now_s: float) -> bool:
        """Whether one more request is within its rate; `now_s` is any clock that does not go back."""
        rate = self.grant.per_s
        if not rate:
            return True
        self._tokens = min(self.grant.burst, self._tokens + (now_s - self._filled_s) * rate)
        self._filled_s = now_s
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True

    @property
    def wait_s(self) -> int:
        """In how many whole seconds one more request will be within its rate."""
        return math.ceil((1 - self._tokens) / self.grant.per_s) if self.grant.per_s and self._tokens < 1 else 0

    def covers(self, card: str | None) -> bool:
        """Whether a card whose number begins so (None: no card) is one of its cards."""
        return not self.grant.bins or (card is not None and card.startswith(self.grant.bins))


class Keyring:
    """The keys that are valid now. `again` reads them anew where a key is not known: one that was made a moment ago is."""

    def __init__(self, grants: Iterable[Grant] = (), again: Callable[[], Iterable[Grant] | None] = lambda: None) -> None:
        self._keys: dict[bytes, Key] = {}
        self._again = again
        self.take(grants)

    def take(self, grants: Iterable[Grant]) -> None:
        """These are valid from now on, and no others. One that stays keeps its bucket and its last use."""
        kept = self._keys
        self._keys = {}
        for grant in grants:
            key = Key(grant)
            known = kept.get(key.digest)
            self._keys[key.digest] = known if known is not None and known.grant == grant else key

    def refresh(self) -> None:
        """Takes what `again` says, if it is new."""
        grants = self._again()
        if grants is not None:
            self.take(grants)

    def of(self, headers: Iterable[tuple[bytes, bytes]], now_ms: int) -> Key | None:
        """The key that a request carries, if it is valid. What is looked up is a hash: how long it takes says nothing of any key."""
        sent = bearer(headers)
        if sent is None:
            return None
        digest = hashlib.sha256(sent).digest()
        key = self._keys.get(digest)
        if key is None:
            self.refresh()
            key = self._keys.get(digest)
        if key is None or not hmac.compare_digest(key.digest, digest):
            return None
        if key.grant.until_ms is not None and now_ms >= key.grant.until_ms:
            return None
        key.used_ms = now_ms
        return key

    def used(self) -> dict[str, int]:
        """When each key was used last by this process, milliseconds since 1970-01-01 UTC, by its hash."""
        return {key.grant.sha256: key.used_ms for key in self._keys.values() if key.used_ms}


def bearer(headers: Iterable[tuple[bytes, bytes]]) -> bytes | None:
    """What stands behind `Authorization: Bearer`."""
    for name, value in headers:
        if name == b"authorization":
            return value[7:].strip() if value[:7].lower() == b"bearer " else None
    return None


class KeyFile:
    """The grants of a folder, and beside them when each was used last. Who changes them holds the folder meanwhile."""

    def __init__(self, folder: Path) -> None:
        self._path, self._used = folder / "keys.json", folder / "used.json"
        self._seen = (0, 0)

    @property
    def is_new(self) -> bool:
        """Whether no key was ever made here."""
        return not self._path.exists()

    def grants(self) -> tuple[Grant, ...]:
        """What the file says; none where there is no file. SettingsError if it cannot be read: it is never taken for one without keys."""
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=tuple[Grant, ...])
        except FileNotFoundError:
            return ()
        except (OSError, msgspec.DecodeError) as error:
            raise SettingsError(f"{self._path}: {error}") from None

    def changed(self) -> tuple[Grant, ...] | None:
        """What the file says if it was written since this was last asked; None if not, or where it is broken: what was valid stays valid."""
        try:
            told = self._path.stat()
            seen = (told.st_mtime_ns, told.st_ino)
        except FileNotFoundError:
            seen = (0, 0)
        except OSError:
            return None
        if seen == self._seen:
            return None
        try:
            found = self.grants()
        except SettingsError:
            return None
        self._seen = seen
        return found

    def add(self, grant: Grant) -> None:
        """One more key is valid."""
        with self._held():
            self._write((*self.grants(), grant))

    def rotate(self, name: str, until_ms: int, made_ms: int) -> str | None:
        """Another key that may do what the newest of that name may, for as long as that one was given; those before it end at `until_ms`.

        None if there is none of that name.
        """
        with self._held():
            grants = self.grants()
            newest = next((grant for grant in reversed(grants) if grant.name == name), None)
            if newest is None:
                return None
            key = new_key()
            ending = tuple(_ending(grant, until_ms) if grant.name == name else grant for grant in grants)
            own_until_ms = None if newest.until_ms is None else made_ms + newest.until_ms - newest.made_ms
            self._write((*ending, msgspec.structs.replace(newest, sha256=hash_of(key), made_ms=made_ms, until_ms=own_until_ms)))
            return key

    def remove(self, name: str) -> bool:
        """Makes every key of that name invalid; whether there was one."""
        with self._held():
            grants = self.grants()
            left = tuple(grant for grant in grants if grant.name != name)
            self._write(left)
            return len(left) < len(grants)

    def used(self) -> dict[str, int]:
        """When each was used last, by its hash, milliseconds since 1970-01-01 UTC, to within a minute."""
        try:
            return msgspec.json.decode(self._used.read_bytes(), type=dict[str, int])
        except (OSError, msgspec.DecodeError):
            return {}

    def note(self, used: dict[str, int]) -> None:
        """Keeps when keys were used, beside what other processes noted."""
        kept = self.used()
        if any(at_ms > kept.get(name, 0) for name, at_ms in used.items()):
            write_whole(self._used, msgspec.json.encode({**kept, **{n: max(at, kept.get(n, 0)) for n, at in used.items()}}))

    @contextmanager
    def _held(self) -> Iterator[None]:
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(self._path.with_name("lock"), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _write(self, grants: tuple[Grant, ...]) -> None:
        """SettingsError for keys that could not be read again: nobody would have one any more."""
        content = msgspec.json.format(msgspec.json.encode(grants))
        try:
            msgspec.json.decode(content, type=tuple[Grant, ...])
        except msgspec.DecodeError as error:
            raise SettingsError(f"no key can be so: {error}") from None
        write_whole(self._path, content, mode=0o600)


def new_key() -> str:
    """A key that nobody can guess: 256 bits by chance."""
    return f"hf_{secrets.token_urlsafe(32)}"


def hash_of(key: str) -> str:
    """What is kept of it. A plain hash is enough for what has 256 bits: there is nothing to try out."""
    return hashlib.sha256(key.encode()).hexdigest()


def with_local(folder: Path, key: str) -> None:
    """Lets that key do everything, where no key was ever made: afterwards it is for `holdfast keys` to say who may."""
    file = KeyFile(folder)
    if file.is_new:
        file.add(Grant(name=LOCAL, sha256=hash_of(key), scopes=(Scope.ADMIN,), made_ms=clock_ms()))


def is_valid(folder: Path, key: str) -> bool:
    """Whether the folder knows that key."""
    return any(grant.sha256 == hash_of(key) for grant in KeyFile(folder).grants())


def _ending(grant: Grant, until_ms: int) -> Grant:
    return msgspec.structs.replace(grant, until_ms=min(until_ms, grant.until_ms or until_ms))
