"""All settings, as one frozen object whose fields are one documented table; read from `HOLDFAST_*` variables and secret files."""

from __future__ import annotations

import argparse
import difflib
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_type_hints

import msgspec
from msgspec import Meta

from schemas.errors import SettingsError
from schemas.record import doc, like

PREFIX = "HOLDFAST_"
FILE = "_FILE"
"""`HOLDFAST_<NAME>_FILE` names a file that holds a secret (its last line break is not part of it)."""

Secret = Annotated[str, Meta(extra={"secret": True})]
Hex64 = like("([0-9a-fA-F]{64})?")
Port = Annotated[int, Meta(ge=0, le=65_535)]
PLACE = r"[^/@,\s]+:(6553[0-5]|655[0-2][0-9]|65[0-4][0-9]{2}|6[0-4][0-9]{3}|[1-5]?[0-9]{1,4})"
"""`host:port`."""
Milliseconds = Annotated[int, Meta(ge=1, le=86_400_000)]
BENEATH_DATA = ("registry_dir", "archive_dir", "keys_dir")
"""Folders that are taken beneath `data_dir` where they are given as relative paths."""


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """One row per setting: name, type with its bounds, meaning, default. To add one, add a row. Folders are absolute after construction."""

    # Kafka
    kafka_bootstrap: Annotated[str, Meta(pattern=f"^{PLACE}(,{PLACE})*$"), doc("brokers, `host:port,host:port`")] = "127.0.0.1:9092"
    broker_kind: Annotated[Literal["kafka", "embedded"], doc("`embedded` is librdkafka's mock cluster: in memory, topics appear on first use")] = (
        "kafka"
    )
    kafka_protocol: Annotated[Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"], doc("how brokers are spoken to")] = "PLAINTEXT"
    kafka_sasl_mechanism: Annotated[Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"], doc("with a SASL protocol")] = "SCRAM-SHA-512"
    kafka_username: Annotated[str, doc("with a SASL protocol")] = ""
    kafka_password: Annotated[Secret, doc("with a SASL protocol")] = ""
    kafka_ca_file: Annotated[str, doc("PEM file of the authority that signed the brokers' certificates; empty: the system's")] = ""
    topic_replication: Annotated[int, Meta(ge=1, le=7), doc("copies of each partition, used where a topic is created")] = 1
    min_insync: Annotated[int, Meta(ge=1, le=7), doc("copies that must have a record before it is acknowledged (acks=all)")] = 1
    produce_timeout_ms: Annotated[Milliseconds, doc("a record not acknowledged by then is indefinite")] = 1_000
    batch_max: Annotated[int, Meta(ge=1, le=10_000), doc("records that an app takes from Kafka at a time, at most")] = 500

    # Redis
    redis_url: Annotated[
        str,
        Meta(pattern=rf"^(unix:///.+|redis://{PLACE}|redis\+cluster://{PLACE}(,{PLACE})*)$"),
        doc("`unix:///path/to/socket`, `redis://host:port`, or some nodes of a cluster: `redis+cluster://host:port,host:port`"),
    ] = "redis://127.0.0.1:6379"
    redis_username: Annotated[str, doc("empty: the default user")] = ""
    redis_password: Annotated[Secret, doc("empty: no password")] = ""

    # Folders
    data_dir: Annotated[Path, doc("all that a system started here keeps on disk; relative to the working directory")] = Path(".holdfast")
    registry_dir: Annotated[Path, doc("models and policies; relative to `data_dir`")] = Path("registry")
    archive_dir: Annotated[Path, doc("decisions as Parquet by day; relative to `data_dir`")] = Path("archive")
    keys_dir: Annotated[Path, doc("API keys, as hashes, with what each may do (`holdfast keys`); relative to `data_dir`")] = Path("keys")
    kafka_cache_dir: Annotated[Path, doc("where Kafka's jars are kept once fetched; relative to the working directory")] = Path(
        "~/.cache/holdfast/kafka-4.1.1"
    )

    # Listening
    http_host: Annotated[str, doc("address on which `authorize` listens")] = "127.0.0.1"
    http_port: Annotated[Port, doc("port on which `authorize` listens")] = 8080
    open_paths: Annotated[str, doc("paths of HTTP that are answered without a key, with commas between them")] = "/health,/ready"
    api_key: Annotated[Secret, doc("key with which commands on this machine ask over HTTP; where no key was ever made, `authorize` takes it")] = ""
    tls_certificate_file: Annotated[str, doc("PEM file of the certificate chain with which both doors speak TLS 1.3; empty: no TLS")] = ""
    tls_key_file: Annotated[str, doc("PEM file of its private key; empty: it is in the same file")] = ""
    http_client_ca_file: Annotated[str, doc("PEM file of the authority that signs the certificates of HTTP's clients; empty: none is asked for")] = ""
    iso8583_client_ca_file: Annotated[str, doc("the same for ISO 8583")] = ""
    jwt_keys: Annotated[
        str,
        Meta(pattern=r"^($|https://.+|http://(127\.0\.0\.1|localhost)[:/].*|[^:]+$)"),
        doc("JWKS by which JWTs are checked: its file, or its `https` URL; empty: none are taken"),
    ] = ""
    jwt_issuer: Annotated[str, doc("what a JWT's `iss` is")] = ""
    jwt_audience: Annotated[str, doc("what a JWT's `aud` has")] = ""
    jwt_per_s: Annotated[int, Meta(ge=0, le=1_000_000), doc("requests a second of one `sub`, at each process; 0: no limit")] = 0
    iso8583_host: Annotated[str, doc("address on which `authorize` listens for ISO 8583")] = "127.0.0.1"
    iso8583_peers: Annotated[str, doc("networks from which ISO 8583 is taken, with commas between them; others are cut before they are heard")] = (
        "127.0.0.0/8,::1"
    )
    iso8583_port: Annotated[Port, doc("port on which `authorize` listens for ISO 8583; 0: it does not")] = 0
    iso8583_dialect: Annotated[
        str, doc("a dialect of `streams/authorize/dialects` by name, or the TOML file of a bank's own (its `extends` names the one it changes)")
    ] = "1987-ascii"
    iso8583_header: Annotated[Literal["binary2", "binary4", "text4"], doc("how a message's length stands before it: 2 or 4 bytes, or 4 digits")] = (
        "binary2"
    )
    metrics_host: Annotated[str, doc("address on which each app serves Prometheus metrics")] = "127.0.0.1"
    metrics_port: Annotated[Port, doc("port of this app's metrics; 0: none. `holdfast up` gives each app its own")] = 0
    trace_endpoint: Annotated[
        str, Meta(pattern=r"^($|https?://.+)"), doc("where `authorize` tells traces, OTLP over HTTP: `http://host:4318/v1/traces`; empty: nowhere")
    ] = ""
    trace_share: Annotated[float, Meta(ge=0, le=1), doc("share of authorizations that are traced, of those whose `traceparent` does not say")] = 0.01

    # Deciding
    token_key: Annotated[Secret, doc("key of the tokens that stand for card numbers, devices, e-mails, phones")] = ""
    token_key_id: Annotated[str, like("[A-Za-z0-9]{1,8}"), doc("names the key inside each token, so that it can be changed")] = "k1"
    model_key: Annotated[
        Secret, Hex64, doc("private Ed25519 key, 64 hex digits, with which models and policies are signed when registered; services need none")
    ] = ""
    model_public_key: Annotated[str, Hex64, doc("its public key, by which they are checked when loaded; empty: that of the private one")] = ""
    unknown_account: Annotated[Literal["decline", "hold"], doc("an account that nobody described: `decline`, or `hold` without a funds check")] = (
        "decline"
    )
    request_deadline_ms: Annotated[
        Milliseconds, doc("how long an authorization may take where its request does not say (`Holdfast-Deadline-Ms`); then the stand-in answers")
    ] = 1_000
    stand_in_policy: Annotated[
        str, Meta(min_length=1), doc("what may be approved while Kafka or Redis does not answer: `default`, a TOML file, or `off`: nobody stands in")
    ] = "default"
    sandbox: Annotated[
        Literal["off", "on"], doc("`on`: test cards force what is decided; only with the embedded broker and in the folder of `holdfast sandbox`")
    ] = "off"
    hold_lease_ms: Annotated[Milliseconds, doc("a provisional hold that the log does not confirm lapses after this")] = 30_000
    answer_ttl_s: Annotated[int, Meta(ge=60, le=31_536_000), doc("how long the first answer of a transaction is kept in Redis")] = 691_200
    future_ms_max: Annotated[int, Meta(ge=0, le=86_400_000), doc("a transaction or label dated further ahead of our clock is refused")] = 300_000

    # Tracking
    tracking_uri: Annotated[str, doc("MLflow server on which `--track` tells runs; empty: `tracking/runs.db` beneath `data_dir`")] = ""

    # Running
    drain_ms: Annotated[
        int,
        Meta(ge=0, le=600_000),
        doc("so long `authorize` goes on after SIGTERM, not ready, before it stops: more than a load balancer takes to see it"),
    ] = 1_000
    watchdog_s: Annotated[int, Meta(ge=1, le=3_600), doc("an app with lag and no progress for this long ends, and is started again")] = 30
    log_level: Annotated[Literal["debug", "info", "warning", "error"], doc("least level of log lines that are written")] = "info"

    def __post_init__(self) -> None:
        """Makes the folders absolute, so that child processes and other working directories mean the same ones."""
        for name in ("data_dir", "kafka_cache_dir"):
            msgspec.structs.force_setattr(self, name, _found(name, getattr(self, name)).absolute())
        for name in BENEATH_DATA:
            msgspec.structs.force_setattr(self, name, self.data_dir / _found(name, getattr(self, name)))

    def __repr__(self) -> str:
        """Names what differs from the default; never a secret's value."""
        shown = (f"{row.name}={'...' if row.secret else getattr(self, row.name)!s}" for row in ROWS if getattr(self, row.name) != row.default)
        return f"Settings({', '.join(shown)})"

    def changed(self, **changes: Any) -> Settings:
        """The same settings but for `changes`; folders beneath `data_dir` move with it. A wrong name or value is a SettingsError."""
        values: dict[str, Any] = {name: getattr(self, name) for name in self.__struct_fields__}
        for name in BENEATH_DATA:
            if values[name].is_relative_to(self.data_dir):
                values[name] = values[name].relative_to(self.data_dir)
        values.update({name: _value(_row_named(name), value) for name, value in changes.items()})
        return Settings(**values)

    @property
    def http_url(self) -> str:
        """Where `authorize` is asked."""
        host = f"[{self.http_host}]" if ":" in self.http_host else self.http_host
        return f"http{'s' if self.tls_certificate_file else ''}://{host}:{self.http_port}"

    def as_environ(self) -> dict[str, str]:
        """The variables from which `settings_from` makes these settings again: to hand to a child process, never to print."""
        return {row.variable: str(getattr(self, row.name)) for row in ROWS if getattr(self, row.name) != row.default}


def _found(name: str, folder: Path) -> Path:
    """The folder, `~` being somebody's home. SettingsError where nobody knows that: no such user, or one without a home."""
    try:
        return folder.expanduser()
    except RuntimeError:
        raise SettingsError(f"{PREFIX}{name.upper()}: {folder}: this home folder is not known; name another") from None


class Row(NamedTuple):
    """One row of the table of settings, read off the fields of `Settings`."""

    name: str
    hint: Any
    kind: str
    default: Any
    meaning: str
    secret: bool

    @property
    def variable(self) -> str:
        """The environment variable that sets it."""
        return PREFIX + self.name.upper()


def _rows() -> tuple[Row, ...]:
    hints = get_type_hints(Settings, include_extras=True)
    fields = msgspec.structs.fields(Settings)
    return tuple(_row(field.name, hints[field.name], field.default) for field in fields)


_KINDS = {"str": "text", "int": "number", "float": "number", "Path": "folder"}


def _row(name: str, hint: Any, default: Any) -> Row:
    plain, *metas = get_args(hint)
    meaning = next(meta.description for meta in metas if meta.description)
    words = get_args(plain)
    kind = " or ".join(f"`{word}`" for word in words) if words else _KINDS[plain.__name__]
    return Row(name, hint, kind, default, meaning, any(meta.extra and meta.extra.get("secret") for meta in metas))


def settings_from(environ: Mapping[str, str]) -> Settings:
    """Settings from `HOLDFAST_*` variables; what is not given has its default.

    A secret may also be given as the name of a file. Raises SettingsError, which names the variable, for a value of the wrong kind or out
    of bounds, an unreadable file, a secret given both ways, or a `HOLDFAST_` variable that no setting has.
    """
    known = {row.variable: row for row in ROWS}
    values: dict[str, Any] = {}
    for variable, text in environ.items():
        if not variable.startswith(PREFIX):
            continue
        row = known.get(variable) or _row_of_file(variable, known)
        if row.name in values:
            raise SettingsError(f"{row.variable}: given both as a value and as a file")
        values[row.name] = _value(row, text if variable == row.variable else _contents(variable, text))
    return Settings(**values)


def _row_of_file(variable: str, known: Mapping[str, Row]) -> Row:
    row = known.get(variable.removesuffix(FILE)) if variable.endswith(FILE) else None
    if row is None:
        near = difflib.get_close_matches(variable, known, n=1)
        raise SettingsError(f"{variable}: no such setting{f' (did you mean {near[0]}?)' if near else ''}")
    if not row.secret:
        raise SettingsError(f"{variable}: only a secret may be given as a file")
    return row


def _contents(variable: str, path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").removesuffix("\n").removesuffix("\r")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{variable}: cannot read {path}: {error}") from None


def _value(row: Row, value: Any) -> Any:
    try:
        return msgspec.convert(value, row.hint, strict=False, dec_hook=_path)
    except msgspec.ValidationError as error:
        raise SettingsError(f"{row.variable}: {error}") from None


def _path(kind: type, value: Any) -> Path:
    if kind is Path and isinstance(value, str | Path) and str(value):
        return Path(value)
    raise ValueError("Expected the path of a folder")


def _row_named(name: str) -> Row:
    for row in ROWS:
        if row.name == name:
            return row
    raise SettingsError(f"{name}: no such setting")


ROWS: tuple[Row, ...] = _rows()
"""The table of settings, in order."""


def table() -> str:
    """The table of settings as Markdown, for the README: variable, what it takes, default, meaning; secrets are marked."""
    lines = ["| variable | takes | default | meaning |", "| --- | --- | --- | --- |"]
    for row in ROWS:
        takes = f"secret {row.kind}, or its file in `{row.variable}{FILE}`" if row.secret else row.kind
        default = f"`{row.default}`" if str(row.default) else ""
        lines.append(f"| `{row.variable}` | {takes} | {default} | {row.meaning} |")
    return "\n".join(lines) + "\n"


def librdkafka(settings: Settings) -> dict[str, str | int | float | bool]:
    """How confluent-kafka reaches the brokers (addresses, protocol, credentials): the part that every client shares.

    SettingsError names what the protocol needs and was not given, and a file of certificates that is none.
    """
    client: dict[str, str | int | float | bool] = {"bootstrap.servers": settings.kafka_bootstrap, "security.protocol": settings.kafka_protocol}
    if settings.kafka_protocol.startswith("SASL"):
        for row in map(_row_named, ("kafka_username", "kafka_password")):
            if not getattr(settings, row.name):
                raise SettingsError(f"{row.variable}: not given; {settings.kafka_protocol} needs it")
        client |= {
            "sasl.mechanism": settings.kafka_sasl_mechanism,
            "sasl.username": settings.kafka_username,
            "sasl.password": settings.kafka_password,
        }
    if settings.kafka_ca_file:
        try:
            ssl.create_default_context(cafile=settings.kafka_ca_file)
        except OSError as error:
            raise SettingsError(f"HOLDFAST_KAFKA_CA_FILE: {settings.kafka_ca_file}: {error.strerror or error}") from None
        client["ssl.ca.location"] = settings.kafka_ca_file
    return client


def command(argv: list[str], settings: Settings) -> int:
    """Prints the table of settings. Secrets are never printed; `settings` only proves that what is set now can be read."""
    parser = argparse.ArgumentParser(prog="holdfast settings", description="The table of settings, as Markdown.")
    parser.parse_args(argv)
    print(table(), end="")
    return 0
