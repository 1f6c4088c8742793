"""What all records share: frozen structs whose fields say their meaning, unit and bounds, once."""

from __future__ import annotations

import enum
from typing import Annotated

import msgspec
from msgspec import Meta


class Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A frozen record. Its Avro schema is derived from its fields (`schemas/avro.py`); new fields need a default."""


class Word(enum.StrEnum):
    """A closed list of words, on the wire a string (so that a new word never breaks an old reader)."""


def doc(text: str) -> Meta:
    """What a field means, with its unit: shown in the Avro schema and in the README's tables."""
    return Meta(description=text)


def like(pattern: str) -> Meta:
    """The whole text is like this. `$` alone would take a line's end behind it too, in Python though not in JSON Schema (ECMA-262)."""
    return Meta(pattern=rf"^{pattern}$(?!\n)")


Id = Annotated[str, Meta(min_length=1, max_length=64)]
Token = Annotated[str, Meta(min_length=1, max_length=128)]
Country = Annotated[str, like("[A-Z]{2}")]
Currency = Annotated[str, like("[A-Z]{3}")]
MinorUnits = Annotated[int, Meta(ge=0, le=2**53)]
SignedMinorUnits = Annotated[int, Meta(ge=-(2**53), le=2**53)]
EPOCH_MS_MAX = 32_503_680_000_000
"""The year 3000: what is later was counted in another unit."""
EpochMs = Annotated[int, Meta(ge=0, le=EPOCH_MS_MAX)]
