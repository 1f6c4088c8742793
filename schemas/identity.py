"""Derived identities: the same input always gets the same id, so a repeat can never become a second thing."""

from __future__ import annotations

import functools
import hashlib
import unicodedata
import uuid
from typing import Any

NAMESPACE = uuid.UUID("6f1d3c5e-8a0b-5f3d-9c53-5d1f0a7be7a1")

INCREMENT = "inc_"
LATER_FIELDS = b"\0\0"
"""The Avro of the fields that a Transaction has had since its third version, at their defaults: `partial_allowed`, `step_up_of`."""

_NAMESPACE = NAMESPACE.bytes
_VARIANT = {digit: "89ab"[int(digit, 16) & 3] for digit in "0123456789abcdef"}
"""The hexadecimal digit with its upper two bits as RFC 9562, 5.5 has them; the version's digit is 5. As `uuid.uuid5`, without a UUID object."""


_BLOCK = 64
_INNER, _OUTER = (bytes(byte ^ pad for byte in range(256)) for pad in (0x36, 0x5C))


def derived_id(prefix: str, *parts: str) -> str:
    """`prefix_` and 32 hex digits: the UUIDv5 of the parts. Prefixes: txn dec hld evt trf sar lbl dlq clr rem val ctl opn."""
    name = f"{prefix}:{chr(31).join(parts)}"
    digits = hashlib.sha1(_NAMESPACE + name.encode(), usedforsecurity=False).hexdigest()
    return f"{prefix}_{digits[:12]}5{digits[13:16]}{_VARIANT[digits[16]]}{digits[17:32]}"


def decision_id(transaction_id: str) -> str:
    """The one id that the decision of this transaction can have."""
    return derived_id("dec", transaction_id)


def hold_id(transaction_id: str) -> str:
    """The one id that the hold of this transaction can have."""
    return derived_id("hld", transaction_id)


def increment_id(transaction_id: str, own: str) -> str:
    """The id of a transaction that raises the hold of another: `own` is what its sender knows it by. Starts with `increments_of`."""
    return increments_of(transaction_id) + increment_end(own)


def increments_of(transaction_id: str) -> str:
    """What the ids of all increments of a transaction start with."""
    return INCREMENT + derived_id("txn", transaction_id)[-16:]


def increments_of_the_same(increment: str) -> str:
    """The same of the transaction that this increment raises: its id without its `increment_end`."""
    return increment[:-16]


def increment_end(own: str) -> str:
    """What the id of an increment that its sender knows as `own` ends with."""
    return derived_id("txn", own)[-16:]


def hash64(text: str) -> int:
    """A stable 64-bit hash, never 0 (0 marks the header of a log): how a row names its transaction."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") or 1


def hash32(text: str) -> int:
    """A stable 32-bit hash, never 0 (0 is 'not given'): how a row names a merchant, a device, a terminal."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "little") or 1


def digest(content: bytes) -> bytes:
    """16 bytes that stand for the contents of a request: SHA-256, cut. Equal digests are the same request."""
    return hashlib.sha256(content).digest()[:16]


def request_digest(content: bytes) -> bytes:
    """The digest of a transaction's plain Avro. Fields that came later stand last and take no part while they have their defaults:

    so a repeat of what an earlier release decided is still known as one.
    """
    return digest(content.removesuffix(LATER_FIELDS))


_SEPARATORS = str.maketrans("", "", " \u00a0\t-./()")


def spelled(kind: str, value: str) -> str:
    """One spelling of an identifier that people write in several: an e-mail and an address in small letters, blanks as one or none, a phone number
    without what parts its digits. All else as it is: what names a device is the bank's own. Where nothing is left, it is as it was."""
    if kind == "eml":
        return unicodedata.normalize("NFC", value).strip().lower() or value
    if kind == "adr":
        return " ".join(unicodedata.normalize("NFC", value).lower().split()) or value
    return (value.translate(_SEPARATORS) if kind == "phn" else value) or value


def keyed_token(key: bytes, key_id: str, kind: str, value: str) -> str:
    """The token of a card number, device, e-mail, phone or address: HMAC-SHA-256 of the whole value (PCI DSS 4.0.1, 3.5.1.1), as it is `spelled`.

    `kind` separates the domains, `key_id` says which key made it: `crd_k1_<32 hex>`.
    """
    value = spelled(kind, value)
    inner, outer = _begun(key)
    within, around = inner.copy(), outer.copy()
    within.update(f"{kind}\x1f{value}".encode())
    around.update(within.digest())
    return f"{kind}_{key_id}_{around.hexdigest()[:32]}"


@functools.lru_cache(maxsize=8)
def _begun(key: bytes) -> tuple[Any, Any]:
    """Both hashes of HMAC-SHA-256 (RFC 2104) with the key taken in: to go on from copies of them is a quarter of the work of `hmac.new`."""
    block = (key if len(key) <= _BLOCK else hashlib.sha256(key).digest()).ljust(_BLOCK, b"\0")
    return hashlib.sha256(block.translate(_INNER)), hashlib.sha256(block.translate(_OUTER))
