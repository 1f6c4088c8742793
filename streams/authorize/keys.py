"""API keys: who may ask what over HTTP, how often, for which cards. Only a key's SHA-256 is kept; the key itself is shown once, when made."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated

import msgspec

from schemas.errors import SettingsError
from schemas.record import Id, Record, Word, doc
from streams.ready import write_whole


class Scope(Word):
    """What a key may do."""

    AUTHORIZE = "authorize"
    CAPTURE = "capture"
    READ = "read"
    EXPLAIN = "explain"
    ADMIN = "admin"


class Grant(Record, frozen=True, kw_only=True):
    """One key, by its SHA-256. Several may be valid at once, so that a key is changed without a gap."""

    name: Annotated[Id, doc("names the key to people")]
    sha256: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}$"), doc("of the key")]
    scopes: Annotated[tuple[Scope, ...], doc("what it may do; `admin` is all of it")]
    bins: Annotated[tuple[str, ...], doc("what its cards' numbers begin with; empty: any card, or none")] = ()
    per_s: Annotated[float, msgspec.Meta(ge=0), doc("requests a second in the long run; 0: no limit")] = 0.0
    burst: Annotated[int, msgspec.Meta(ge=1), doc("requests at once, after a pause")] = 1_000


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

    def covers(self, card_bin: str | None) -> bool:
        """Whether a card that begins so (None: no card) is one of its cards."""
        return not self.grant.bins or (card_bin is not None and card_bin.startswith(self.grant.bins))


class Keyring:
    """The keys that are valid now. `again` reads them anew where a key is not known: one that was made a moment ago is."""

    def __init__(self, grants: Iterable[Grant] = (), again: Callable[[], Iterable[Grant] | None] = lambda: None) -> None:
        self._keys: dict[bytes, Key] = {}
        self._again = again
        self.take(grants)

    def take(self, grants: Iterable[Grant]) -> None:
        """These are valid from now on, and no others. One that stays keeps its bucket."""
        kept = self._keys
        made = [Key(grant) for grant in grants]
        self._keys = {key.digest: kept[key.digest] if key.digest in kept and kept[key.digest].grant == key.grant else key for key in made}

    def refresh(self) -> None:
        """Takes what `again` says, if it is new."""
        grants = self._again()
        if grants is not None:
            self.take(grants)

    def of(self, headers: Iterable[tuple[bytes, bytes]]) -> Key | None:
        """The key that a request carries, if it is valid. What is looked up is a hash: how long it takes says nothing of any key."""
        for name, value in headers:
            if name == b"authorization" and value[:7].lower() == b"bearer ":
                digest = hashlib.sha256(value[7:]).digest()
                key = self._keys.get(digest)
                if key is None:
                    self.refresh()
                    key = self._keys.get(digest)
                return key if key is not None and hmac.compare_digest(key.digest, digest) else None
        return None

    def used(self) -> dict[str, int]:
        """When each key was used last by this process, milliseconds since 1970-01-01 UTC."""
        return {key.grant.name: key.used_ms for key in self._keys.values() if key.used_ms}


class KeyFile:
    """The file of grants, and beside it when each was used last."""

    def __init__(self, path: Path) -> None:
        self._path, self._seen = path, (0, 0)
        self._used = path.with_name(f"{path.stem}.used.json")

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
        if seen == self._seen:
            return None
        self._seen = seen
        try:
            return self.grants()
        except SettingsError:
            return None

    def add(self, name: str, scopes: Iterable[Scope], bins: Iterable[str] = (), per_s: float = 0.0, burst: int = 1_000) -> str:
        """Makes a key and keeps its hash, in place of an earlier one of that name; the key, which nobody can read again."""
        key = f"hf_{secrets.token_urlsafe(32)}"
        sha256 = hashlib.sha256(key.encode()).hexdigest()
        grant = Grant(name=name, sha256=sha256, scopes=tuple(scopes), bins=tuple(bins), per_s=per_s, burst=burst)
        self._write((*(g for g in self.grants() if g.name != name), grant))
        return key

    def remove(self, name: str) -> bool:
        """Makes the key of that name invalid, if there is one."""
        grants = self.grants()
        left = tuple(grant for grant in grants if grant.name != name)
        self._write(left)
        return len(left) < len(grants)

    def used(self) -> dict[str, int]:
        """When each was used last, milliseconds since 1970-01-01 UTC, to within a minute."""
        try:
            return msgspec.json.decode(self._used.read_bytes(), type=dict[str, int])
        except (FileNotFoundError, msgspec.DecodeError):
            return {}

    def note(self, used: dict[str, int]) -> None:
        """Keeps when keys were used, beside what other processes noted."""
        kept = self.used()
        if any(at_ms > kept.get(name, 0) for name, at_ms in used.items()):
            write_whole(self._used, msgspec.json.encode({**kept, **{n: max(at, kept.get(n, 0)) for n, at in used.items()}}))

    def _write(self, grants: tuple[Grant, ...]) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(self._path, msgspec.json.format(msgspec.json.encode(grants)), mode=0o600)
