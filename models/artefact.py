"""A trained model as bytes, and bytes as a model: a card (JSON), its arrays (plain numbers, one after the other) and a signature.

No byte is parsed before its hash and signature were checked, and nothing in a file is ever executed. The card says how long each array is;
types and order are here. Every index and number is checked before a walk may read it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from itertools import pairwise
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from msgspec import Meta

from models.ensemble import Artefact, Ensemble, Member
from models.trees import EXP2, IDENTITY, LOGISTIC, NODE, TERM, Floats, Forest, Ints
from schemas.errors import ArtefactError
from schemas.record import EpochMs

CARD, ARRAYS, SIGNATURE = "card.json", "arrays.bin", "card.sig"
BYTES_MAX = {CARD: 4 << 20, ARRAYS: 256 << 20, SIGNATURE: 64}
"""A file larger than this is refused before it is read."""
FORMAT, ROUNDING, LEAST_COVER = 1, 1e-9, 1e-12
TYPES: dict[str, np.dtype[Any]] = {
    "nodes": NODE,
    "cover": np.dtype("<f8"),
    "roots": np.dtype("<i4"),
    "starts": np.dtype("<i4"),
    "terms": TERM,
    "term_starts": np.dtype("<i4"),
    "baselines": np.dtype("<f8"),
    "links": np.dtype("<i4"),
    "curve_x": np.dtype("<f8"),
    "curve_y": np.dtype("<f8"),
    "curve_starts": np.dtype("<i4"),
    "usual": np.dtype("<f8"),
    "suspicious_low": np.dtype("u1"),
}
"""The arrays of a model, in the order of the file: those of the forest, and what is usual in each column."""


class Keys(NamedTuple):
    """Ed25519: the public key checks what the private one signed. Services have only the public one."""

    public: bytes
    private: bytes = b""

    def signature(self, content: bytes) -> bytes:
        """64 bytes that prove that the owner of the private key meant this content."""
        if not self.private:
            raise ArtefactError("there is no private key here to sign with", "no_private_key")
        if public_of(self.private) != self.public:
            raise ArtefactError("the private key and the public key are not a pair", "no_private_key")
        return Ed25519PrivateKey.from_private_bytes(self.private).sign(content)

    def check(self, content: bytes, signature: bytes, what: str) -> None:
        """ArtefactError if the content is not signed by the private key's owner."""
        try:
            Ed25519PublicKey.from_public_bytes(self.public).verify(signature, content)
        except InvalidSignature:
            raise ArtefactError(f"{what} is not signed with the key of this installation", "unsigned") from None


def public_of(private: bytes) -> bytes:
    """The public key (32 bytes) of a private one (32 bytes)."""
    return Ed25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


class _MemberRow(msgspec.Struct, frozen=True):
    name: Annotated[str, Meta(min_length=1, max_length=64)]
    weight: Annotated[float, Meta(ge=0, le=1)]
    columns: Annotated[tuple[Annotated[int, Meta(ge=0, lt=1 << 16)], ...], Meta(max_length=1 << 16)]


class _Trained(msgspec.Struct, frozen=True):
    """On what it was trained, and with what."""

    rows: int
    frauds: int
    from_at_ms: EpochMs
    until_at_ms: EpochMs
    seed: int
    sklearn_version: str
    policy_id: str
    recipe_id: str
    learned_until_ms: EpochMs | None = None


class _Column(msgspec.Struct, frozen=True):
    """Where a column's training rows lay: `models/drift.py`."""

    edges: tuple[float, ...]
    shares: tuple[float, ...]

    def __post_init__(self) -> None:
        """ValueError unless there is a share for each bin, and one of the missing."""
        if len(self.shares) != len(self.edges) + 2:
            raise ValueError(f"{len(self.shares)} shares for {len(self.edges)} edges")


class _Card(msgspec.Struct, frozen=True):
    """The parts of a card that are read where models decide, are listed, pass gates and are watched."""

    format: Literal[1]
    catalogue_id: Annotated[str, Meta(min_length=1, max_length=64)]
    features: Annotated[tuple[Annotated[str, Meta(min_length=1, max_length=128)], ...], Meta(min_length=1, max_length=1 << 16)]
    members: Annotated[tuple[_MemberRow, ...], Meta(min_length=1, max_length=64)]
    trained: _Trained
    figures: dict[str, float | None]
    checks: dict[str, float]
    arrays: dict[str, Annotated[int, Meta(ge=0, lt=1 << 28)]]
    sha256: str
    snapshot: dict[str, _Column] = {}


def packed(artefact: Artefact) -> dict[str, bytes]:
    """The artefact's files by name: the card (members, weights, catalogue, how it was made, figures, checks) and the arrays."""
    ensemble = artefact.ensemble
    said = ensemble.forest._asdict() | {"usual": ensemble.usual, "suspicious_low": ensemble.suspicious_low}
    arrays = b"".join(np.ascontiguousarray(said[name], dtype=kind).tobytes() for name, kind in TYPES.items())
    card = {
        "format": FORMAT,
        "catalogue_id": ensemble.catalogue_id,
        "features": ensemble.names,
        "members": [{"name": m.name, "weight": m.weight, "columns": m.columns} for m in ensemble.members],
        "trained": {
            "rows": artefact.rows,
            "frauds": artefact.frauds,
            "from_at_ms": artefact.from_at_ms,
            "until_at_ms": artefact.until_at_ms,
            "learned_until_ms": artefact.learned_until_ms,
            "seed": artefact.seed,
            "sklearn_version": artefact.sklearn_version,
            "policy_id": artefact.policy_id,
            "recipe_id": artefact.recipe_id,
            "data_sha256": artefact.data_sha256,
        },
        "figures": artefact.figures,
        "checks": artefact.checks,
        "snapshot": artefact.snapshot,
        "fairness": artefact.fairness,
        "weights": artefact.weights,
        "plots": artefact.plots,
        "arrays": {name: len(said[name]) for name in TYPES},
        "sha256": hashlib.sha256(arrays).hexdigest(),
    }
    return {ARRAYS: arrays, CARD: json.dumps(card, indent=1, allow_nan=False).encode()}


def model_id_of(card: bytes) -> str:
    """The id that the card's bytes give: the card holds the hash of all else."""
    return f"mdl_{hashlib.sha256(card).hexdigest()[:32]}"


def opened(files: Mapping[str, bytes], keys: Keys, model_id: str) -> Ensemble:
    """The ensemble in these files. ArtefactError with a code unless they are small enough, of this id, signed, whole and sound, in that order."""
    _small_enough(files)
    if model_id_of(files[CARD]) != model_id:
        raise ArtefactError(f"model {model_id}: {CARD} was altered", "altered")
    keys.check(files[CARD], files[SIGNATURE], f"model {model_id}")
    try:
        return unpacked(files)
    except ArtefactError as error:
        raise ArtefactError(f"model {model_id}: {error}", error.code) from None


def unpacked(files: Mapping[str, bytes]) -> Ensemble:
    """The ensemble in a card and its arrays, whoever signed them: for what was trained here. ArtefactError if they are not whole and sound."""
    _small_enough(files)
    card = _card(files[CARD])
    if hashlib.sha256(files[ARRAYS]).hexdigest() != card.sha256:
        raise ArtefactError(f"{ARRAYS} is not what its card says (SHA-256 differs)", "altered")
    arrays = _cut(files[ARRAYS], card.arrays)
    low, width = arrays["suspicious_low"], len(card.features)
    forest = Forest(*(arrays[name] for name in Forest._fields))
    members = tuple(Member(m.name, m.weight, m.columns) for m in card.members)
    fits = (
        len(arrays["usual"]) == len(low) == width
        and len(forest.baselines) == len(members)
        and len(set(card.features)) == width
        and len({m.name for m in members}) == len(members)
        and abs(sum(m.weight for m in members) - 1) < 1e-6
        and all(column < width for m in members for column in m.columns)
        and bool((low <= 1).all())
        and not np.isinf(arrays["usual"]).any()
    )
    if not fits:
        raise ArtefactError("the model's arrays and its card do not fit together", "malformed")
    return Ensemble(model_id_of(files[CARD]), card.catalogue_id, card.features, members, sound(forest, width), arrays["usual"], low.astype(np.bool_))


def _small_enough(files: Mapping[str, bytes]) -> None:
    for name, content in files.items():
        if len(content) > BYTES_MAX[name]:
            raise ArtefactError(f"{name} has {len(content)} bytes; {BYTES_MAX[name]} are allowed", "oversized")


def _card(content: bytes) -> _Card:
    try:
        return msgspec.json.decode(content, type=_Card)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:  # a card may be nested without end
        raise ArtefactError(f"{CARD} is not a model's card: {error}", "malformed") from None


def _cut(content: bytes, lengths: Mapping[str, int]) -> dict[str, npt.NDArray[Any]]:
    """The arrays in the file, each by its type and length, as copies; together they must be the whole file."""
    if lengths.keys() != TYPES.keys() or sum(lengths[name] * kind.itemsize for name, kind in TYPES.items()) != len(content):
        raise ArtefactError(f"{ARRAYS} is not as long as its card says", "malformed")
    arrays, at = {}, 0
    for name, kind in TYPES.items():
        arrays[name] = np.frombuffer(content, kind, lengths[name], at).copy() if lengths[name] else np.empty(0, kind)
        at += lengths[name] * kind.itemsize
    return arrays


def sound(forest: Forest, width: int) -> Forest:
    """The forest, if every walk through it ends and reads only the first `width` columns, and every number is one; else ArtefactError."""
    members = len(forest.baselines)
    good = (
        _typed(forest)
        and len(forest.links) == members
        and bool(np.isin(forest.links, (IDENTITY, LOGISTIC, EXP2)).all())
        and bool(np.isfinite(forest.baselines).all())
        and _partition(forest.starts, members, len(forest.roots))
        and _partition(forest.term_starts, members, len(forest.terms))
        and _partition(forest.curve_starts, members + 1, len(forest.curve_x))
        and _trees_end(forest, width)
        and _terms_fit(forest.terms, width)
        and _curves_rise(forest)
        and all(_is_probability(forest, member) for member in range(members))
    )
    if not good:
        raise ArtefactError("the forest's arrays do not describe trees, terms and curves", "unsound_arrays")
    return forest


def _typed(forest: Forest) -> bool:
    """Whether every array is of one dimension and of its type."""
    types: tuple[Any, ...] = (NODE, "<f8", "<i4", "<i4", TERM, "<i4", "<f8", "<i4", "<f8", "<f8", "<i4")
    return all(array.ndim == 1 and array.dtype == np.dtype(kind) for array, kind in zip(tuple[Any, ...](forest), types, strict=True))


def _partition(starts: Ints, parts: int, total: int) -> bool:
    """Whether `starts` cuts `total` things into so many parts."""
    return len(starts) == parts + 1 and int(starts[0]) == 0 and int(starts[-1]) == total and bool((np.diff(starts.astype(np.int64)) >= 0).all())


def _trees_end(forest: Forest, width: int) -> bool:
    """Whether each child lies behind its parent within the tree, and each node is somebody's left or right child exactly once."""
    nodes, roots, feature = forest.nodes, forest.roots.astype(np.int64), forest.nodes["feature"]
    if len(forest.cover) != len(nodes) or (len(roots) == 0) != (len(nodes) == 0):
        return False
    if len(nodes) == 0:
        return True
    if roots[0] != 0 or not (np.diff(roots) > 0).all() or roots[-1] >= len(nodes):
        return False
    at, right, inner = np.arange(len(nodes)), np.abs(nodes["right"].astype(np.int64)), feature >= 0
    end_of = np.append(roots[1:], len(nodes))[np.searchsorted(roots, at, side="right") - 1]
    return (
        bool(((feature >= -1) & (feature < width)).all())
        and bool(((right > at + 1) & (right < end_of))[inner].all())
        and bool((np.isfinite(nodes["threshold"]) | (inner & (nodes["threshold"] == np.inf))).all())  # inf: every value goes left, missing apart
        and _in_pre_order(inner, right, roots, end_of)
        and _covers_add_up(forest.cover, inner, right)
    )


def _in_pre_order(inner: npt.NDArray[np.bool_], right: npt.NDArray[np.int64], roots: npt.NDArray[np.int64], end_of: npt.NDArray[np.int64]) -> bool:
    """Whether every node but the roots has one parent: the left child follows it, the right one is where it says."""
    parents = np.zeros(len(inner) + 1, dtype=np.int64)
    np.add.at(parents, np.flatnonzero(inner) + 1, 1)
    np.add.at(parents, right[inner], 1)
    wanted = np.ones(len(inner), dtype=np.int64)
    wanted[roots] = 0
    return bool((parents[:-1] == wanted).all()) and parents[-1] == 0


def _covers_add_up(cover: Floats, inner: npt.NDArray[np.bool_], right: npt.NDArray[np.int64]) -> bool:
    """Whether each node's training rows are those of its children: attribution divides by shares of them."""
    parents = np.flatnonzero(inner)
    rows = cover[parents + 1] + cover[right[parents]]
    return bool((cover >= LEAST_COVER).all() and (cover <= 1 / LEAST_COVER).all() and (np.abs(rows - cover[parents]) <= 1e-6 * rows).all())


def _terms_fit(terms: npt.NDArray[np.void], width: int) -> bool:
    finite = all(np.isfinite(terms[name]).all() for name in ("centre", "weight", "missing"))
    return bool(finite) and bool(((terms["column"] >= 0) & (terms["column"] < width)).all())


def _is_probability(forest: Forest, member: int) -> bool:
    """Whether no row can lead out of 0 to 1: a logistic never does, a mean of shares only by its leaves, a power of two by a positive sum.

    A member that had no column to read has no trees: it says its baseline of every row.
    """
    link = int(forest.links[member])
    if link == LOGISTIC:
        return True
    if forest.term_starts[member] != forest.term_starts[member + 1]:
        return False
    roots = forest.roots[forest.starts[member] : forest.starts[member + 1]]
    if not len(roots):
        return link == IDENTITY and 0 <= float(forest.baselines[member]) <= 1
    end = int(forest.roots[forest.starts[member + 1]]) if forest.starts[member + 1] < len(forest.roots) else len(forest.nodes)
    mine = forest.nodes[roots[0] : end]
    highest = np.maximum.reduceat(np.where(mine["feature"] < 0, mine["threshold"], -np.inf), roots - roots[0]).sum()
    lowest = np.minimum.reduceat(np.where(mine["feature"] < 0, mine["threshold"], np.inf), roots - roots[0]).sum()
    top = forest.baselines[member] + highest
    return bool(top <= ROUNDING) if link == EXP2 else bool(top <= 1 + ROUNDING and forest.baselines[member] + lowest >= -ROUNDING)


def _curves_rise(forest: Forest) -> bool:
    """Whether each curve goes strictly to the right, never down, and stays within 0 and 1."""
    x, y, starts = forest.curve_x, forest.curve_y, forest.curve_starts
    if len(x) != len(y) or not (np.isfinite(x).all() and np.isfinite(y).all() and (y >= 0).all() and (y <= 1).all()):
        return False
    curves = [slice(a, b) for a, b in pairwise(starts)]
    return all(bool((np.diff(x[c]) > 0).all() and (np.diff(y[c]) >= 0).all()) for c in curves)
