"""Embedded broker: Apache Kafka in KRaft mode, a single node that is its own controller."""

from __future__ import annotations

import os
import subprocess
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from confluent_kafka import Consumer

from nigredo.errors import DependencyDown
from nigredo.kafka.kept_consumer import KeptConsumer
from nigredo.kafka.publisher import client_config
from nigredo.settings import Settings
from nigredo.stack.artifacts import Artifacts
from nigredo.stack.home import Home, write_private
from nigredo.stack.part import READY, Part
from nigredo.stack.parts.java import JVM_GRACE_S, JavaProgram
from nigredo.stack.parts.kafka_users import KafkaUsers

FORMAT_TIMEOUT_S = 300
PROBE = "nigredo-supervisor"
PROBE_TIMEOUT_S = 1.0
OPEN_TO_ALL = {"listener.security.protocol.map": "CLIENTS:PLAINTEXT,CONTROLLER:PLAINTEXT"}
LOGGING = """\
status = error
appender.out.type = Console
appender.out.name = out
appender.out.layout.type = PatternLayout
appender.out.layout.pattern = [%d] %p %m (%c)%n
rootLogger.level = INFO
rootLogger.appenderRef.out.ref = out
"""


class BrokerProbe:
    """Asks a broker whether it serves clients."""

    def __init__(self, config: Callable[[], Mapping[str, Any]]) -> None:
        """config: returns the client's configuration, once the credentials exist."""
        # The client is replaced after a failure, because librdkafka may keep a connection on which it never asks the
        # restarted broker anything.
        self._client = KeptConsumer(lambda: Consumer({**config(), "group.id": PROBE}))

    def waiting_for(self) -> str | None:
        """Return READY, or the reason why the broker does not serve clients yet. Blocks for a second at most."""
        try:
            with self._client.lend() as consumer:
                return READY if consumer.list_topics(timeout=PROBE_TIMEOUT_S).brokers else "a broker"
        except DependencyDown:
            return "start"


def kafka_part(home: Home, artifacts: Artifacts, environment: Mapping[str, str]) -> Part:
    """Return the broker of a stack."""
    folder = home.dir / "kafka"
    data, configuration = folder / "data", folder / "server.properties"
    class_path = os.pathsep.join(map(str, artifacts.kafka_class_path))
    java = JavaProgram(
        "kafka",
        folder,
        artifacts.cache,
        # Serial collector and small heap, because one quiet node needs no more and shares the machine.
        ("-Xmx512m", "-XX:+UseSerialGC", "-cp", class_path),
        (f"-Dlog4j2.configurationFile={folder / 'log4j2.properties'}", "kafka.Kafka", str(configuration)),
        class_path,
    )
    probe = BrokerProbe(
        lambda: client_config(
            Settings.from_environment(home.part_environment(environment, "kafka", role="admin")), PROBE
        )
    )
    users = KafkaUsers(home, folder / "users")

    def prepare() -> None:
        java.prepare()
        (folder / "log4j2.properties").write_text(LOGGING, encoding="utf-8")
        settings = _properties(home, data) | (users.broker_settings() if home.kafka_auth == "scram" else OPEN_TO_ALL)
        write_private(configuration, "".join(f"{name}={value}\n" for name, value in settings.items()))
        if (data / "meta.properties").exists() and (folder / "formatted").exists():
            return
        cluster_id = uuid.uuid4().hex[:22]
        command = java.tool("kafka.tools.StorageTool", "format", "-t", cluster_id, "-c", str(configuration))
        with home.log_file("kafka").open("ab") as log:
            result = subprocess.run(
                [*command, "--ignore-formatted"],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                timeout=FORMAT_TIMEOUT_S,
                check=False,
            )
        if result.returncode != 0:
            raise DependencyDown(f"Kafka's storage cannot be formatted; see {home.log_file('kafka')}")
        users.recreate()
        (folder / "formatted").touch()

    def waiting_for() -> str | None:
        if home.kafka_auth == "scram" and (missing := users.waiting_for()) is not None:
            return missing
        return probe.waiting_for()

    return Part(
        "kafka",
        java.command,
        environment,
        waiting_for,
        ports=(home.port("kafka"), home.port("kafka-controller")),
        prepare=prepare,
        ended=java.ended,
        grace_s=JVM_GRACE_S,
    )


def _properties(home: Home, data: Path) -> dict[str, object]:
    broker, controller = home.port("kafka"), home.port("kafka-controller")
    return {
        "process.roles": "broker,controller",
        "node.id": 1,
        "controller.quorum.voters": f"1@127.0.0.1:{controller}",
        "listeners": f"CLIENTS://127.0.0.1:{broker},CONTROLLER://127.0.0.1:{controller}",
        "advertised.listeners": f"CLIENTS://127.0.0.1:{broker}",
        "inter.broker.listener.name": "CLIENTS",
        "controller.listener.names": "CONTROLLER",
        "log.dirs": data,
        # `nigredo topics ensure` creates the topics; a mistyped name must not create one.
        "auto.create.topics.enable": "false",
        "offsets.topic.replication.factor": 1,
        "offsets.topic.num.partitions": 4,
        "transaction.state.log.replication.factor": 1,
        "transaction.state.log.min.isr": 1,
        "transaction.state.log.num.partitions": 1,
        "share.coordinator.state.topic.replication.factor": 1,
        "share.coordinator.state.topic.min.isr": 1,
        "share.coordinator.state.topic.num.partitions": 1,
        # After kill -9 the controller readmits the broker only when its old session expired; the default is 9 s.
        "broker.session.timeout.ms": 3000,
        "broker.heartbeat.interval.ms": 500,
        # Most groups have one consumer, so a first rebalance need not wait for more members.
        "group.initial.rebalance.delay.ms": 0,
        "log.cleaner.dedupe.buffer.size": 16 * 1024 * 1024,
        "num.network.threads": 2,
        "num.io.threads": 4,
    }
