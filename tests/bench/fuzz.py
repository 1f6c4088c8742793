"""`holdfast bench fuzz`: mutated model files. As they come, not one may be served; signed by a rightful key all the same, not one may crash.

Mutations: bits, bytes, words of an array, lengths; cut, grown, doubled, with parts of the card edited. A signed one that is sound
after all (a leaf of another height, say) is scored and explained, and must stay within 0 and 1.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Mapping

import numpy as np

from models.artefact import ARRAYS, CARD, SIGNATURE, Keys, model_id_of, opened, packed, public_of
from models.ensemble import Ensemble
from models.policy import policy_from_toml
from models.registry import default_policy_text
from models.train import train
from schemas.errors import ArtefactError
from streams.settings import Settings

EXTREMES = (0, 1, 2**31 - 1, -(2**31), -1, 2**30)


def mutated(content: bytes, rng: np.random.Generator) -> bytes:
    """Other bytes than these."""
    at, out = int(rng.integers(0, len(content))), bytearray(content)
    kind = int(rng.integers(0, 7))
    if kind == 0:
        out[at] ^= 1 << int(rng.integers(0, 8))
    elif kind == 1:
        out[at : at + 8] = rng.bytes(min(8, len(out) - at))
    elif kind == 2:
        at -= at % 4
        out[at : at + 4] = EXTREMES[int(rng.integers(0, len(EXTREMES)))].to_bytes(4, "little", signed=True)[: len(out) - at]
    elif kind == 3:
        del out[at:]
    elif kind == 4:
        out += rng.bytes(int(rng.integers(1, 64)))
    elif kind == 5:
        out[at:at] = out[max(at - 64, 0) : at] or b"0"
    else:
        at -= at % 8
        out[at : at + 8] = np.array([(np.nan, np.inf, -np.inf, 1e308, -1e308, 5e-324)[int(rng.integers(0, 6))]]).tobytes()[: len(out) - at]
    return bytes(out) if bytes(out) != content else content + b"0"


def mutated_card(content: bytes, rng: np.random.Generator) -> bytes:
    """The card with one of its words or numbers another one, or its bytes mutated."""
    if rng.random() < 0.5:
        return mutated(content, rng)
    tokens = list(re.finditer(rb"-?[0-9.e+-]{1,}|\"[^\"]*\"|true|null|[\[\]{}]", content))
    token = tokens[int(rng.integers(0, len(tokens)))]
    other = (b"0", b"-1", b"1e999", b"NaN", b"null", b"{}", b"[]", b'""', b"99999999999999999999", b"[" * 5_000, b'"\\ud800"', b"0.5", b"4294967296")
    changed = content[: token.start()] + other[int(rng.integers(0, len(other)))] + content[token.end() :]
    return changed if changed != content else mutated(content, rng)


def fuzzed(files: Mapping[str, bytes], keys: Keys, count: int, seed: int, signed: bool = False) -> Counter[str]:
    """How many mutations were refused, by code, and how many served. Any other exception than ArtefactError is a crash, and raised."""
    rng, counts = np.random.default_rng(seed), Counter[str]()
    for _ in range(count):
        changed = dict(files)
        name = (CARD, ARRAYS, SIGNATURE)[int(rng.integers(0, 2 if signed else 3))]
        changed[name] = mutated_card(changed[name], rng) if name == CARD else mutated(changed[name], rng)
        if signed:
            changed = rightfully(changed, files, keys, name)
        counts["mutated"] += 1
        try:
            ensemble = opened(changed, keys, model_id_of(changed[CARD]))
        except ArtefactError as refused:
            counts[f"refused_{refused.code}"] += 1
            continue
        counts["served"] += 1
        counts["out_of_bounds"] += not within_bounds(ensemble, rng)
    return counts


def rightfully(changed: dict[str, bytes], files: Mapping[str, bytes], keys: Keys, name: str) -> dict[str, bytes]:
    """The files as if the key's owner had made them so: the card's hash and the signature fit."""
    if name == ARRAYS:
        hashes = [hashlib.sha256(each[ARRAYS]).hexdigest().encode() for each in (files, changed)]
        changed[CARD] = changed[CARD].replace(*hashes)
    return changed | {SIGNATURE: keys.signature(changed[CARD])}


def within_bounds(ensemble: Ensemble, rng: np.random.Generator) -> bool:
    """Whether scores of any rows are within 0 and 1, or none; and reasons can be asked for."""
    rows = rng.normal(size=(3, len(ensemble.names))) * 10.0 ** rng.integers(-3, 7)
    rows[rng.random(rows.shape) < 0.2] = np.nan
    for row in rows:
        scored = ensemble.score(row)
        ensemble.contributions(scored, row)
        if scored.score is not None and not -1e-9 <= scored.score <= 1 + 1e-9:
            return False
    return all(math.isnan(score) or -1e-9 <= score <= 1 + 1e-9 for score in ensemble.scores(rows).tolist())


def fuzz(argv: list[str], settings: Settings) -> int:
    """`holdfast bench fuzz [--count N] [--json]`: exit status 0 if nothing crashed and nothing unsigned was served."""
    from tests.models.conftest import a_history
    from tests.world import examples_of, quick

    parser = argparse.ArgumentParser(prog="holdfast bench fuzz", description=__doc__)
    parser.add_argument("--count", type=int, default=100_000, help="mutations as they come; half as many are signed besides")
    parser.add_argument("--json", action="store_true", help="end with one JSON object of the counts")
    args = parser.parse_args(argv)
    made = packed(train(examples_of(*a_history(1_000)), quick(), policy_from_toml(default_policy_text()), seed=1))
    keys = Keys(public_of(b"k" * 32), b"k" * 32)
    files = made | {SIGNATURE: keys.signature(made[CARD])}
    strange, own = fuzzed(files, keys, args.count, seed=1), fuzzed(files, keys, args.count // 2, seed=2, signed=True)
    holds = strange["served"] == 0 and own["out_of_bounds"] == 0
    print(f"as they come: {strange['mutated']:,} mutated, {strange['served']} served; refused: {said(strange)}")
    print(f"signed:       {own['mutated']:,} mutated, {own['served']} sound after all, {own['out_of_bounds']} out of bounds; refused: {said(own)}")
    print("holds" if holds else "does NOT hold")
    if args.json:
        print(json.dumps({"as_they_come": strange, "signed": own, "holds": holds}))
    return 0 if holds else 1


def said(counts: Mapping[str, int]) -> str:
    """The refusals, by code."""
    return ", ".join(f"{code.removeprefix('refused_')} {count:,}" for code, count in sorted(counts.items()) if code.startswith("refused_"))
