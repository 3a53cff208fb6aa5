"""Records of ours are read by clients that know nothing of us, and theirs by us."""

from __future__ import annotations

import io
import json
import socket
from dataclasses import replace
from datetime import UTC, datetime
from uuid import uuid4

import avro.io
import avro.schema
import httpx
import pytest
from confluent_kafka.schema_registry import SchemaRegistryClient, topic_subject_name_strategy
from confluent_kafka.schema_registry.avro import AvroDeserializer, AvroSerializer
from confluent_kafka.serialization import MessageField, SerializationContext
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from nigredo.avro.codec import PREFIX, Codec, Undecodable
from nigredo.avro.pins import text_of
from nigredo.avro.registry import Registry, RegistryUnavailable, SchemaIncompatible
from nigredo.kafka.pinned_schemas import PinnedSchemas
from nigredo.settings import Settings
from nigredo.testing import Stack
from schemas import events
from schemas.events import Event
from schemas.topics import TOPICS, load_schema

# By name, as every registry knows it; the client's own default first asks for a Confluent Cloud feature.
BY_TOPIC = {"subject.name.strategy": topic_subject_name_strategy}
NOON = datetime(2026, 11, 24, 12, 0, 0, 123000, tzinfo=UTC)
CONTACT = events.Contact("João", "joao@example.com", "Olá\n€ 😀", {"a": "b"})
HEAD = (uuid4(), "192.0.2.1", "192.0.2.1", None, "contact", "ad", CONTACT, NOON)
SAMPLES: dict[str, list[Event]] = {
    "nigredo.submissions": [
        events.Submission(*HEAD, 10, 3600, False, None),
        events.Submission(*HEAD, 10, 3600, True, "rate_limited"),
        events.Submission(*HEAD, 10, 3600, False, "spam", "honeypot"),
        events.LimitReset("192.0.2.1", "ana", NOON),
        events.RejectionRelease(uuid4(), "192.0.2.1", "ana", NOON),
        events.RefusalCount("192.0.2.1", 100, NOON, NOON),
    ],
    "nigredo.leads": [events.Lead(*HEAD, NOON, False, 3, 2**40)],
    "nigredo.rejections": [
        events.Rejection(*HEAD, NOON, "spam", None, 3, 1, "too_fast"),
        events.Rejection(*HEAD, NOON, "rate_limited", NOON, 3, 1),
    ],
    "nigredo.rate-limits": [
        events.RateLimitState("192.0.2.1", 10, 3600, (events.Acceptance(uuid4(), NOON),), 2, NOON, 7),
        events.RateLimitState("2001:db8::/64", 1, 60, (), 0, NOON, 0),
        events.RateLimitState("192.0.2.1", 1, 60, (), 0, NOON, 0, exempt=(events.Acceptance(uuid4(), NOON),)),
    ],
    "nigredo.deliveries": [
        events.DeliveryAttempt(uuid4(), uuid4(), "fibonacci", "http://x", 1, NOON, 12, "delivered", 200, None, 0, 1)
    ],
    "nigredo.webhook-dead": [events.WebhookDead(uuid4(), "fibonacci", 3, "refused", 404, "HTTP 404", NOON, 0, 1)],
    "nigredo.webhook-replays": [events.WebhookReplay(uuid4(), "fibonacci", "ana", NOON, 0, 1)],
    "nigredo.dead-letters": [
        events.DeadLetter(
            "f", "undecodable", "x", "t", 0, 1, NOON, None, b"\0\1", (events.RecordHeader("h", None),), NOON
        )
    ],
    "nigredo.control": [events.ControlEntry("endpoint", "fibonacci", {"a": "b"}, "ana", NOON, None)],
    "nigredo.audit": [events.AuditEntry("ana", "config.set", "x", {"a": "b"}, NOON)],
}


@pytest.fixture(scope="module")
def codec(stack: Stack) -> Codec:
    codec = Codec(PinnedSchemas(stack.settings()))
    codec.prepare(TOPICS)
    return codec


@pytest.mark.parametrize("topic", TOPICS)
def test_what_is_encoded_is_decoded_as_it_was(codec: Codec, topic: str) -> None:
    assert SAMPLES[topic]
    for event in SAMPLES[topic]:
        assert codec.decode(topic, codec.encode(topic, event)) == event


@pytest.mark.parametrize("topic", TOPICS)
def test_confluents_own_deserializer_reads_every_topic(stack: Stack, codec: Codec, topic: str) -> None:
    deserializer = AvroDeserializer(registry_client(stack), conf=BY_TOPIC)

    for event in SAMPLES[topic]:
        read = deserializer(codec.encode(topic, event), SerializationContext(topic, MessageField.VALUE))
        assert isinstance(read, dict)
        for name in ("client_network", "lead_id", "endpoint", "limit"):
            if hasattr(event, name):
                assert read[name] == getattr(event, name)
        if isinstance(event, events.Lead):
            assert read["contact"]["name"] == "João"
            assert read["taken_at"] == NOON


@pytest.mark.parametrize("topic", TOPICS)
def test_the_apache_avro_library_reads_every_topic(codec: Codec, topic: str) -> None:
    schema = avro.schema.make_avsc_object(load_schema(TOPICS[topic].schema))

    for event in SAMPLES[topic]:
        value = io.BytesIO(codec.encode(topic, event)[PREFIX.size :])
        read = avro.io.DatumReader(schema).read(avro.io.BinaryDecoder(value))
        assert isinstance(read, dict)
        assert value.read() == b""


def test_what_confluents_serializer_writes_is_read_by_us(stack: Stack, codec: Codec) -> None:
    schema = load_schema("audit")

    serializer = AvroSerializer(
        registry_client(stack), json.dumps(schema), conf=BY_TOPIC | {"auto.register.schemas": True}
    )
    entry = {"actor": "ana", "action": "a", "subject": "s", "details": {}, "at": NOON}

    value = serializer(entry, SerializationContext("nigredo.audit", MessageField.VALUE))

    assert value is not None
    assert codec.decode("nigredo.audit", value) == events.AuditEntry("ana", "a", "s", {}, NOON)


@hypothesis_settings(max_examples=200)
@given(st.binary(max_size=60))
def test_any_bytes_are_an_event_or_undecodable(codec: Codec, data: bytes) -> None:
    # Ids that mean nothing are another test's: each of them is asked for again for seconds.
    data = data if data[:1] != b"\0" else b"\1" + data
    valid = codec.encode("nigredo.leads", SAMPLES["nigredo.leads"][0])
    for value in (data, valid[:5] + data, valid + data + b"x", valid[: len(data)]):
        try:
            codec.decode("nigredo.leads", value)
        except Undecodable as error:
            assert "João" not in str(error)


def test_what_is_pinned_is_written_and_read_without_the_registry(stack: Stack) -> None:
    codec = Codec(PinnedSchemas(without_registry(stack)))
    codec.prepare(TOPICS)

    lead = SAMPLES["nigredo.leads"][0]
    assert (
        Codec(PinnedSchemas(without_registry(stack))).decode("nigredo.leads", codec.encode("nigredo.leads", lead))
        == lead
    )


def test_an_id_that_is_not_pinned_means_wait_and_not_poison_while_the_registry_is_away(stack: Stack) -> None:
    codec = Codec(PinnedSchemas(without_registry(stack)))

    with pytest.raises(RegistryUnavailable):
        codec.decode("nigredo.leads", PREFIX.pack(0, 2**31 - 1) + b"x")


def test_the_registry_refuses_a_schema_that_would_break_readers(stack: Stack) -> None:
    registry = Registry(stack.registry_url, credentials=stack.registry_credentials)
    broken = load_schema("audit")
    broken["fields"].append({"name": "new", "type": "string", "doc": "A field that old records do not have."})

    with pytest.raises(SchemaIncompatible):
        registry.register("nigredo.audit-value", text_of(broken))


@pytest.mark.parametrize(
    ("kind", "schema"),
    [
        ("JSON", '{"$schema": "http://json-schema.org/draft-07/schema#", "type": "object"}'),
        ("PROTOBUF", 'syntax = "proto3"; message Lead { string id = 1; }'),
    ],
)
def test_a_schema_that_is_no_avro_makes_a_record_undecodable(
    stack: Stack, codec: Codec, kind: str, schema: str
) -> None:
    answer = httpx.post(
        f"{stack.registry_url}/subjects/test-{uuid4()}-value/versions",
        auth=stack.registry_credentials,
        json={"schemaType": kind, "schema": schema},
        timeout=10,
    )

    with pytest.raises(Undecodable):
        codec.decode("nigredo.leads", PREFIX.pack(0, answer.json()["id"]) + b"x")


def test_a_reader_resolves_a_version_with_a_further_field(stack: Stack) -> None:
    """A newer release may write while an older one still reads."""
    registry = Registry(stack.registry_url, credentials=stack.registry_credentials)
    grown = load_schema("audit")
    grown["fields"].append({"name": "why", "type": ["null", "string"], "default": None, "doc": "A further field."})
    subject = f"test-{uuid4()}-value"
    schema_id = registry.register(subject, text_of(grown))
    entry = events.AuditEntry("ana", "a", "s", {}, NOON)
    codec = Codec(PinnedSchemas(stack.settings()))
    codec.prepare(["nigredo.audit"])

    value = PREFIX.pack(0, schema_id) + codec.encode("nigredo.audit", entry)[PREFIX.size :] + b"\x02\x06why"

    assert codec.decode("nigredo.audit", value) == replace(entry)


def registry_client(stack: Stack) -> SchemaRegistryClient:
    return SchemaRegistryClient({"url": stack.registry_url, "timeout": 10, "max.retries": 1} | stack.registry_proof)


def without_registry(stack: Stack) -> Settings:
    return replace(stack.settings(), schema_registry_url=f"http://127.0.0.1:{unused_port()}")


def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
