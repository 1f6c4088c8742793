"""JWTs as keys: who a bank's own identity provider says may ask. Checked by its JWKS, of a file or a URL, which is read again as it changes."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import aiohttp
import jwt
import msgspec

from schemas.errors import SettingsError
from schemas.record import Id
from streams import journal
from streams.authorize.keys import CARD_RANGE, Grant, Key, Scope
from streams.settings import PREFIX, Settings

ALGORITHMS = ("RS256", "PS256", "ES256", "ES384", "EdDSA")
"""Asymmetric ones alone: a public key must never be taken for a shared secret."""
FRESH_S, AGAIN_S = 300.0, 10.0
"""How long a JWKS is used, and how soon it may be read again for a key that it does not name."""
FETCH_S, FETCHED_BYTES_MAX = 5.0, 1_048_576
LEEWAY_S = 30.0
"""How far the issuer's clock may be ahead of ours when it says since when a token is (`iat`, `nbf`); when one ends is exact."""
PATIENCE_S = 0.1
"""How long a payment waits for a JWKS that is read again, where the one before is known."""
KEPT_MAX = 10_000
"""Tokens and subjects that are remembered; past it all are forgotten and checked again."""
WORDS = {str(scope): scope for scope in Scope}


class _Claims(msgspec.Struct, frozen=True):
    """What is read of a token. `scope` is words with spaces between them (RFC 8693), `scp` a list of them.

    `card_bins` is what its cards' numbers begin with. Absent it is any card; an empty list, which would say the same, is refused.
    """

    sub: Id
    exp: float
    scope: str = ""
    scp: Sequence[str] = ()
    card_bins: Annotated[tuple[Annotated[str, msgspec.Meta(pattern=CARD_RANGE)], ...], msgspec.Meta(min_length=1)] = ()


class Tokens:
    """The tokens of one issuer for one audience. `read` gives the JWKS and may take its time."""

    def __init__(self, read: Callable[[], bytes], issuer: str, audience: str, per_s: float = 0.0) -> None:
        self._read, self._issuer, self._audience, self._per_s = read, issuer, audience, per_s
        self._public: dict[str, jwt.PyJWK] = {}
        self._read_s: float | None = None
        self._reading: asyncio.Task[None] | None = None
        self._checked: dict[bytes, tuple[Key, float]] = {}
        self._subjects: dict[Grant, Key] = {}
        self._refused: set[bytes] = set()
        """Tokens of the issuer of which the journal says why they are not taken: once each, however often they are sent."""

    async def of(self, sent: bytes, now_ms: int) -> Key | None:
        """The key that a token is, if it is valid now. One that was checked once costs a hash until it ends, or until the JWKS is read again."""
        digest = hashlib.sha256(sent).digest()
        await self._stay_fresh(FRESH_S, None if self._read_s is None else PATIENCE_S)
        checked = self._checked.get(digest)
        if checked is None:
            checked = await self._check(sent, digest)
            if checked is None:
                return None
            if len(self._checked) >= KEPT_MAX:
                self._checked.clear()
            self._checked[digest] = checked
        key, until_s = checked
        if now_ms >= until_s * 1000:
            self._say(digest, "it has expired")
            return None
        key.used_ms = now_ms
        return key

    async def _check(self, sent: bytes, digest: bytes) -> tuple[Key, float] | None:
        try:
            named = str(jwt.get_unverified_header(sent).get("kid", ""))
            if named not in self._public:
                await self._stay_fresh(AGAIN_S)
            public = self._public.get(named)
            if public is None or public.algorithm_name not in ALGORITHMS:
                return None
            algorithms = [public.algorithm_name]
            jwt.PyJWS().decode(sent, public, algorithms)
        except (jwt.PyJWTError, ValueError):  # not the issuer's, for all that is known: not a word, or anybody could fill the journal
            return None
        try:
            options: Any = {"require": ["exp", "sub", "iss", "aud"]}
            about: Any = {"issuer": self._issuer, "audience": self._audience, "leeway": LEEWAY_S}
            claims = msgspec.convert(jwt.decode(sent, public, algorithms, options, **about), _Claims)
        except (msgspec.ValidationError, jwt.PyJWTError, ValueError) as error:
            self._say(digest, str(error))
            return None
        words = (*claims.scope.split(), *claims.scp)
        scopes = tuple(sorted({WORDS[word] for word in words if word in WORDS}))
        grant = Grant(name=claims.sub, sha256="0" * 64, scopes=scopes, bins=claims.card_bins, per_s=self._per_s, burst=max(1, int(self._per_s)))
        if len(self._subjects) >= KEPT_MAX:
            self._subjects.clear()
        return self._subjects.setdefault(grant, Key(grant)), claims.exp

    def _say(self, digest: bytes, reason: str) -> None:
        if digest not in self._refused:
            if len(self._refused) >= KEPT_MAX:
                self._refused.clear()
            self._refused.add(digest)
            journal.logger().warning("a token of the issuer cannot be taken", reason=reason)

    async def _stay_fresh(self, fresh_s: float, patience_s: float | None = None) -> None:
        """Reads the JWKS where it was read longer ago; once for all who wait for it, no longer than `patience_s`."""
        if self._read_s is not None and time.monotonic() - self._read_s < fresh_s:
            return
        if self._reading is None:
            self._reading = asyncio.create_task(self._read_again())
        await asyncio.wait([self._reading], timeout=patience_s)

    async def _read_again(self) -> None:
        """Takes the JWKS as it is now. One that cannot be read takes nothing away: an identity provider that is down stops no payment."""
        try:
            content = await asyncio.to_thread(self._read)
            public = {key.key_id: key for key in jwt.PyJWKSet.from_json(content.decode()).keys if key.key_id is not None}
            if self._public.keys() != public.keys() or any(self._public[name]._jwk_data != key._jwk_data for name, key in public.items()):
                self._public = public
                self._checked.clear()
        except Exception as error:  # noqa: BLE001 whatever an identity provider sends in its place
            journal.logger().error("the JWKS cannot be read", reason=repr(error))
        finally:
            self._read_s, self._reading = time.monotonic(), None


def tokens_of(settings: Settings) -> Tokens | None:
    """The tokens that the settings allow; None if none. SettingsError where issuer or audience is missing: tokens for others would be taken."""
    source = settings.jwt_keys
    if not source:
        return None
    if not settings.jwt_issuer or not settings.jwt_audience:
        raise SettingsError(f"{PREFIX}JWT_ISSUER, {PREFIX}JWT_AUDIENCE: needed with {PREFIX}JWT_KEYS")
    read = (lambda: _fetched(source)) if source.startswith(("https://", "http://")) else Path(source).read_bytes
    return Tokens(read, settings.jwt_issuer, settings.jwt_audience, settings.jwt_per_s)


def _fetched(url: str) -> bytes:
    try:
        return asyncio.run(_downloaded(url))
    except (aiohttp.ClientError, TimeoutError) as error:
        raise OSError(f"{url}: {error!r}") from None


async def _downloaded(url: str) -> bytes:
    """What lies there. FETCH_S is for all of it: who sends byte by byte would keep everybody waiting who has a token."""
    whole = aiohttp.ClientTimeout(total=FETCH_S)
    async with aiohttp.ClientSession(timeout=whole, raise_for_status=True, trust_env=True) as session, session.get(url) as answer:
        content = bytearray()
        async for part in answer.content.iter_any():
            content += part
            if len(content) > FETCHED_BYTES_MAX:
                raise aiohttp.ClientPayloadError(f"more than {FETCHED_BYTES_MAX} bytes")
        return bytes(content)
