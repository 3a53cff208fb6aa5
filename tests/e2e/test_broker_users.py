"""Users of one machine and the embedded broker: each reads and writes what its rights say, a stranger nothing."""

from __future__ import annotations

import secrets
import socket
import subprocess
from collections.abc import Callable
from typing import Any

import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer
from confluent_kafka.admin import AdminClient, NewTopic
from structlog.testing import capture_logs

from nigredo.kafka.publisher import client_config
from nigredo.kafka.security import refusal_notice
from nigredo.stack.home import KAFKA_CLIENTS
from nigredo.testing import Stack, eventually

WITHIN_S = 20.0


@pytest.fixture(autouse=True)
def closed(stack: Stack) -> None:
    if stack.home.kafka_auth != "scram":
        pytest.skip("this stack's broker is open to all")


def as_user(stack: Stack, user: str) -> dict[str, Any]:
    return stack.client_config() | {
        "sasl.username": user,
        "sasl.password": stack.home.secret(f"kafka-{user}"),
    }


def outcome_of_writing(config: dict[str, Any], topic: str) -> KafkaError | None:
    outcomes: list[KafkaError | None] = []
    producer = Producer(config | {"message.timeout.ms": int(WITHIN_S * 1000)})
    producer.produce(topic, b"", key=b"test", on_delivery=lambda error, _: outcomes.append(error))
    producer.flush(WITHIN_S + 5)
    return outcomes[0]


def outcome_of_reading(config: dict[str, Any], topic: str, group: str) -> KafkaError | None:
    consumer = Consumer(config | {"group.id": group, "auto.offset.reset": "earliest", "enable.partition.eof": True})
    consumer.subscribe([topic])
    try:
        message = eventually(lambda: consumer.poll(1.0), within_s=60, what="a record, its end, or an error")
        error = message.error()
        return None if error is None or error.code() == KafkaError._PARTITION_EOF else error
    finally:
        consumer.close()


def test_a_client_without_a_password_or_with_a_wrong_one_gets_nothing(stack: Stack) -> None:
    address = {"bootstrap.servers": stack.bootstrap_servers, "log_level": 0}
    admin = as_user(stack, "admin")
    for proof in ({}, admin | {"sasl.password": "wrong"}, admin | {"sasl.username": "root"}):
        with pytest.raises(KafkaException):
            AdminClient(address | proof).list_topics(timeout=3)


def test_a_wrong_password_is_told_apart_from_a_broker_that_is_away(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refusal_notice, "_next_at", float("-inf"))
    producer = Producer(stack.producer_config(delivery_timeout_s=30) | {"sasl.password": "wrong"})

    def told() -> bool:
        producer.poll(0.1)
        return bool(lines)

    with capture_logs() as lines:
        eventually(told, within_s=60, what="a line about the refusal")

    assert lines[0]["error"] == "_AUTHENTICATION"


def test_the_controllers_listener_answers_no_stranger(stack: Stack) -> None:
    """An open one would let anybody on the machine write users and rights into the cluster's metadata."""
    with socket.create_connection(("127.0.0.1", stack.home.port("kafka-controller")), timeout=WITHIN_S) as connection:
        # DescribeCluster, which every controller answers: api 60, version 1, no client id, no tagged fields.
        request = b"\x00\x3c\x00\x01\x00\x00\x00\x07\xff\xff\x00\x00\x02\x00"
        connection.sendall(len(request).to_bytes(4, "big") + request)
        assert connection.recv(100) == b""


def test_an_analyst_reads_leads_and_neither_writes_nor_takes_the_products_part(stack: Stack) -> None:
    reader = as_user(stack, "reader")
    stack.post()

    assert outcome_of_reading(reader, "nigredo.leads", f"mine-{secrets.token_hex(4)}") is None
    for topic, group, code in (
        ("nigredo.control", "mine", KafkaError.TOPIC_AUTHORIZATION_FAILED),
        ("nigredo.leads", stack.settings().function("persister"), KafkaError.GROUP_AUTHORIZATION_FAILED),
    ):
        refused = outcome_of_reading(reader, topic, group)
        assert refused is not None
        assert refused.code() == code
    written = outcome_of_writing(reader, "nigredo.leads")
    assert written is not None
    assert written.code() == KafkaError.TOPIC_AUTHORIZATION_FAILED


def test_the_processes_make_and_write_their_own_topics_and_no_others(stack: Stack) -> None:
    config = client_config(stack.settings(), "test")
    admin = AdminClient(config)
    own, foreign = f"nigredo.test-{secrets.token_hex(4)}", f"test-{secrets.token_hex(4)}"

    made = admin.create_topics([NewTopic(own, 1, 1), NewTopic(foreign, 1, 1)])
    made[own].result(WITHIN_S)
    with pytest.raises(KafkaException) as refused:
        made[foreign].result(WITHIN_S)

    assert refused.value.args[0].code() == KafkaError.TOPIC_AUTHORIZATION_FAILED
    assert outcome_of_writing(config, own) is None
    operator = AdminClient(stack.client_config())
    operator.delete_topics([own])[own].result(WITHIN_S)


@pytest.mark.parametrize("user", KAFKA_CLIENTS)
def test_kcat_of_any_age_logs_in_with_the_file_of_the_home(stack: Stack, tool: Callable[[str], str], user: str) -> None:
    file = stack.home.dir / "secrets" / f"kafka-{user}.conf"
    command = [tool("kcat"), "-F", str(file), "-C", "-q", "-e", "-t", "nigredo.leads", "-f", "%k\n"]

    assert subprocess.run(command, capture_output=True, timeout=60, check=True).stdout
    assert file.stat().st_mode & 0o777 == 0o600


def test_no_password_is_in_a_log_or_an_argument_list(stack: Stack) -> None:
    secrets_of_the_home = [file.read_text().strip() for file in (stack.home.dir / "secrets").glob("kafka-*")]
    passwords = [line.rpartition("=")[2].strip('";') for text in secrets_of_the_home for line in text.splitlines()]
    told = "".join(file.read_text(errors="replace") for file in (stack.home.dir / "logs").glob("*.log"))
    shown = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, timeout=30, check=True).stdout

    for password in (text for text in passwords if len(text) >= 32):
        assert password not in told
        assert password not in shown
