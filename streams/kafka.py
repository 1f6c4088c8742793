"""Apache Kafka of our own, in KRaft mode: fetched once with Maven, formatted once, one broker or three, topics from the one table."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import tempfile
import time
import uuid
from base64 import urlsafe_b64encode
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from confluent_kafka import Consumer, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic  # type: ignore[attr-defined] # exported without saying so

from schemas.errors import Unavailable
from schemas.topics import TOPICS, Topic
from streams.parts import Say
from streams.settings import Settings, librdkafka

DEPLOY = Path(__file__).resolve().parents[1] / "deploy" / "kafka"
HEAP_MB = {1: 512, 3: 256}
ANSWER_S = 0.5
ADMIN_S = 10.0
API_VERSIONS = bytes.fromhex("0000000a 0012 0000 00000001 ffff")
"""The smallest request a broker answers: length, ApiVersions, version 0, correlation id 1, no client id."""


class Node(NamedTuple):
    """One process that is broker and controller."""

    number: int
    folder: Path
    port: int
    controller_port: int


def fetched(settings: Settings, say: Say) -> Path:
    """The folder with Kafka's jars, fetched with Maven where they are not there yet. Unavailable names what is missing and how to get it."""
    needs("java", "a Java 17 runtime", "openjdk-17-jre-headless")
    home = settings.kafka_cache_dir
    libs = home / "libs"
    if libs.is_dir():
        return libs
    needs("mvn", "Maven, which fetches Kafka once", "maven")
    home.mkdir(parents=True, exist_ok=True)
    say(f"fetching Kafka with Maven into {home} (43 MB, once)")
    with tempfile.TemporaryDirectory(dir=home) as draft:
        goal = ["dependency:copy-dependencies", f"-DoutputDirectory={draft}/libs"]
        done = subprocess.run(
            ["mvn", "-q", "-B", "-C", "-f", str(DEPLOY / "pom.xml"), *goal], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise Unavailable(f"Maven could not fetch Kafka: {(done.stdout + done.stderr).strip()[-2000:]}")
        with contextlib.suppress(OSError):  # someone else fetched it at the same time
            Path(draft, "libs").rename(libs)
    return libs


def needs(program: str, what: str, package: str) -> None:
    """Unavailable where `program` is not to be found, with the way to get it."""
    if shutil.which(program) is None:
        raise Unavailable(f"{program} is missing: real Kafka needs {what} (Debian and Ubuntu: apt-get install {package})")


def command(libs: Path, node: Node, nodes: int) -> tuple[str, ...]:
    """How one broker is started."""
    heap = f"{HEAP_MB[nodes]}m"
    memory = (f"-Xms{heap}", f"-Xmx{heap}", "-XX:+UseG1GC", "-XX:MaxGCPauseMillis=20", "-XX:+ExitOnOutOfMemoryError")
    log = f"-Dlog4j2.configurationFile={DEPLOY / 'log4j2.properties'}"
    return ("java", *memory, log, "-cp", f"{libs}/*", "kafka.Kafka", str(_properties_file(node)))


def formatted(libs: Path, nodes: Sequence[Node]) -> None:
    """Writes each node's properties, and formats the storage of those that are new. The cluster's id is kept by the first node."""
    for node in nodes:
        node.folder.mkdir(parents=True, exist_ok=True)
        _properties_file(node).write_text(_properties(node, nodes), encoding="utf-8")
    name = nodes[0].folder.parent / "cluster_id"
    if not name.exists():
        name.write_text(urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("="), encoding="utf-8")
    tool = ("java", "-XX:TieredStopAtLevel=1", "-Xshare:auto", "-cp", f"{libs}/*", "kafka.tools.StorageTool", "format")
    cluster = f"--cluster-id={name.read_text(encoding='utf-8')}"  # which may begin with a dash
    runs = [
        subprocess.Popen(
            [*tool, "--ignore-formatted", cluster, "-c", str(_properties_file(node))],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for node in nodes
        if not (node.folder / "data" / "meta.properties").exists()
    ]  # fmt: skip
    for run in runs:
        said, _ = run.communicate()
        if run.returncode != 0:
            raise Unavailable(f"Kafka's storage could not be formatted: {said.strip()[-2000:]}")


def _properties_file(node: Node) -> Path:
    return node.folder / "server.properties"


def _properties(node: Node, nodes: Sequence[Node]) -> str:
    """server.properties. The quorum is a static list of voters, so that a controller may come back on another port."""
    copies = len(nodes)
    insync = min(2, copies)
    rows = {
        "process.roles": "broker,controller",
        "node.id": node.number,
        "controller.quorum.voters": ",".join(f"{each.number}@127.0.0.1:{each.controller_port}" for each in nodes),
        "listeners": f"PLAINTEXT://127.0.0.1:{node.port},CONTROLLER://127.0.0.1:{node.controller_port}",
        "advertised.listeners": f"PLAINTEXT://127.0.0.1:{node.port}",
        "controller.listener.names": "CONTROLLER",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "log.dirs": node.folder / "data",
        "auto.create.topics.enable": "false",
        "num.partitions": 4,
        "default.replication.factor": copies,
        "min.insync.replicas": insync,
        "offsets.topic.num.partitions": 8,
        "offsets.topic.replication.factor": copies,
        "offsets.retention.minutes": 525_600,  # an app that was off for a year goes on where it stopped
        "transaction.state.log.num.partitions": 8,
        "transaction.state.log.replication.factor": copies,
        "transaction.state.log.min.isr": insync,
        "share.coordinator.state.topic.replication.factor": copies,
        "share.coordinator.state.topic.min.isr": insync,
        "group.initial.rebalance.delay.ms": 0,
        "log.cleaner.dedupe.buffer.size": 16 << 20,  # of the heap; 128 MB by default
        "broker.heartbeat.interval.ms": 1000,
        "broker.session.timeout.ms": 4000,  # a broker that was killed may join again after this; 9 s by default
        "num.network.threads": 2,
        "num.io.threads": 4,
        "num.recovery.threads.per.data.dir": 2,
        "controlled.shutdown.enable": "true",
    }
    return "".join(f"{name}={value}\n" for name, value in rows.items())


def answers(node: Node) -> bool:
    """Whether the broker takes requests."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", node.port), ANSWER_S) as client:
        client.settimeout(ANSWER_S)
        client.sendall(API_VERSIONS)
        return len(client.recv(8)) == 8
    return False


def ensure_topics(settings: Settings, brokers: int, timeout_s: float = 60.0, topics: Sequence[Topic] = TOPICS) -> None:
    """Makes the topics of the table that are missing, once `brokers` brokers have joined; returns when each partition has a leader that answers.

    Unavailable when that does not succeed in time.
    """
    admin = AdminClient(librdkafka(settings) | {"log_level": 0})
    deadline = time.monotonic() + timeout_s
    while len(present := _joined(admin)) < brokers:
        if time.monotonic() > deadline:
            raise Unavailable(f"only {len(present)} of {brokers} Kafka brokers joined within {timeout_s:.0f} s")
        time.sleep(0.1)
    known = admin.list_topics(timeout=ADMIN_S).topics
    missing = [new_topic(topic, settings) for topic in topics if topic.name not in known]
    try:
        for future in admin.create_topics(missing, operation_timeout=ADMIN_S).values() if missing else ():
            future.result()
    except KafkaException as error:
        raise Unavailable(f"the topics could not be made: {error}") from None
    _await_leaders(settings, [TopicPartition(topic.name, number) for topic in topics for number in range(topic.partitions)], deadline)


def _await_leaders(settings: Settings, places: Sequence[TopicPartition], deadline: float) -> None:
    asker = Consumer(librdkafka(settings) | {"log_level": 0, "group.id": "holdfast-stack"})
    try:
        for place in places:
            while not _has_leader(asker, place):
                if time.monotonic() > deadline:
                    raise Unavailable(f"partition {place.partition} of {place.topic} has no leader that answers")
                time.sleep(0.05)
    finally:
        asker.close()


def _has_leader(asker: Consumer, place: TopicPartition) -> bool:
    try:
        return asker.get_watermark_offsets(place, timeout=2.0) is not None
    except KafkaException:
        return False


def _joined(admin: AdminClient) -> list[int]:
    try:
        return list(admin.list_topics(timeout=2.0).brokers)
    except KafkaException:
        return []


def new_topic(topic: Topic, settings: Settings) -> NewTopic:
    """A row of the table as Kafka's admin wants it."""
    config = {
        "cleanup.policy": "compact" if topic.compacted else "delete",
        "retention.ms": str(topic.retention_ms),
        "message.timestamp.type": "LogAppendTime" if topic.log_time else "CreateTime",
        "min.insync.replicas": str(settings.min_insync),
    }
    return NewTopic(topic.name, num_partitions=topic.partitions, replication_factor=settings.topic_replication, config=config)


class Described(NamedTuple):
    """A topic as it is on the brokers."""

    partitions: int
    copies: int
    config: dict[str, str]


def describe_topics(settings: Settings) -> dict[str, Described]:
    """The topics that exist, with the settings that they have. KafkaException when Kafka does not answer."""
    admin = AdminClient(librdkafka(settings) | {"log_level": 0})
    topics = admin.list_topics(timeout=ADMIN_S).topics
    answers = admin.describe_configs([ConfigResource(ConfigResource.Type.TOPIC, name) for name in topics], request_timeout=ADMIN_S)
    config = {resource.name: {name: entry.value for name, entry in answer.result().items()} for resource, answer in answers.items()}
    return {
        name: Described(len(topic.partitions), min(len(partition.replicas) for partition in topic.partitions.values()), config[name])
        for name, topic in topics.items()
    }
