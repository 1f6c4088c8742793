"""Every exception Holdfast raises on purpose, as one tree. A refusal (a thing a customer may not do) is a value, not one of these."""

from __future__ import annotations


class HoldfastError(Exception):
    """The root: catching it catches what Holdfast itself says, and no bug."""


class InvalidRecord(HoldfastError):
    """Input that is not a valid record. `field` names the culprit, `code` is stable, `reason` is for a person.

    At HTTP it is a 422, on a topic a dead letter, in a replay file a refused row.
    """

    def __init__(self, field: str, reason: str, code: str = "invalid_field") -> None:
        super().__init__(f"{field}: {reason}")
        self.field = field
        self.reason = reason
        self.code = code


class UnknownSchema(InvalidRecord):
    """Bytes that are not in the Confluent framing, or that name a schema id the committed catalogue does not have."""

    def __init__(self, reason: str) -> None:
        super().__init__("schema_id", reason, code="unknown_schema")


class UnreadableBytes(InvalidRecord):
    """Framed bytes whose schema is known, but which do not decode by it."""

    def __init__(self, reason: str) -> None:
        super().__init__("value", reason, code="unreadable_bytes")


class Conflict(HoldfastError):
    """The same id came before with other contents: the first stands (HTTP 409, topic dead letter)."""

    def __init__(self, transaction_id: str) -> None:
        super().__init__(f"transaction_id {transaction_id!r} was already used with other contents")
        self.transaction_id = transaction_id
        self.code = "transaction_conflict"


class Unavailable(HoldfastError):
    """A part that a decision needs did not answer in time: nothing was decided, or it is not yet known whether it was."""

    code = "unavailable"


class MemoryUnavailable(Unavailable):
    """Redis did not answer, or it has forgotten and is being rebuilt."""

    code = "memory_unavailable"


class LogUnavailable(Unavailable):
    """Kafka did not acknowledge in time: the result is indefinite; ask again with the same id."""

    code = "log_unavailable"


class SettingsError(HoldfastError):
    """A setting or a file written by a person is wrong; the message names it."""


class ArtefactError(HoldfastError):
    """A model or policy artefact is missing, altered or does not fit this catalogue; `code` is stable."""

    def __init__(self, reason: str, code: str = "unfit") -> None:
        super().__init__(reason)
        self.code = code
