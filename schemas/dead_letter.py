"""DeadLetter: a record that could not be applied, kept whole with the reason, so that it can be mended and sent again."""

from __future__ import annotations

from typing import Annotated

from schemas.record import EpochMs, Id, Record, doc


class DeadLetter(Record, frozen=True, kw_only=True):
    """One record that an app could not apply."""

    dead_letter_id: Annotated[Id, doc("derived from app, topic, partition and offset")]
    app: Annotated[str, doc("the app that could not apply it")]
    topic: Annotated[str, doc("where it came from")]
    partition: Annotated[int, doc("its partition")]
    offset: Annotated[int, doc("its offset")]
    code: Annotated[str, doc("stable code of the reason, for example `unknown_schema`")]
    field: Annotated[str | None, doc("the field that is wrong, if one is")]
    reason: Annotated[str, doc("the reason, for a person")]
    key: Annotated[bytes | None, doc("the record's key, as it was")]
    value: Annotated[bytes | None, doc("the record's value, as it was")]
    at_ms: Annotated[EpochMs, doc("timestamp of the record in the broker, milliseconds since 1970-01-01 UTC")]
