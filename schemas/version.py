"""Version: one committed schema, as a row of the catalogue."""

from __future__ import annotations

from typing import NamedTuple


class Version(NamedTuple):
    """One committed schema: the id on the wire, the record's name, its version, the Avro schema as JSON text."""

    schema_id: int
    record: str
    version: int
    schema: str
