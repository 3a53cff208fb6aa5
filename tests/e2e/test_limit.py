"""The limit, seen from both ends of the pipeline."""

from __future__ import annotations

from uuid import UUID, uuid4

import httpx
from confluent_kafka import Producer

from nigredo.avro.codec import PREFIX, Codec
from nigredo.clock import utc_now
from nigredo.kafka.pinned_schemas import PinnedSchemas
from nigredo.kafka.topic_reader import TopicReader
from nigredo.networks import client_network, parse_hop
from nigredo.testing import Stack, any_client, eventually
from schemas.events import Contact, Rejection, Submission
from schemas.topics import REJECTIONS, SUBMISSIONS

VERDICTS = "SELECT id, verdict FROM nigredo.form_submissions WHERE ip_address = %s ORDER BY submission_offset"


def submission(client: str) -> Submission:
    address = parse_hop(client)
    assert address is not None
    return Submission(
        id=uuid4(),
        client_network=client_network(address),
        ip_address=client,
        user_agent=None,
        form_id=None,
        source=None,
        contact=Contact("Ana", "ana@example.com", "Oi", {}),
        taken_at=utc_now(),
        limit=10,
        window_s=3600,
        exempt=False,
        edge_verdict=None,
    )


def codec_of(stack: Stack) -> Codec:
    settings = stack.settings()
    codec = Codec(PinnedSchemas(settings))
    codec.prepare([SUBMISSIONS])
    return codec


def publish(stack: Stack, submissions: list[Submission]) -> None:
    codec = codec_of(stack)
    producer = Producer(stack.producer_config(delivery_timeout_s=10))
    for event in submissions:
        producer.produce(SUBMISSIONS, key=event.client_network.encode(), value=codec.encode(SUBMISSIONS, event))
    assert producer.flush(15) == 0


def test_the_eleventh_submission_of_an_hour_is_refused_kept_and_counted(stack: Stack) -> None:
    client = any_client()
    sent = [submission(client) for _ in range(11)]

    publish(stack, sent)

    rows = eventually(
        lambda: found if len(found := stack.rows(VERDICTS, client)) == 11 else None, within_s=60, what="eleven verdicts"
    )
    assert rows == [(event.id, "accepted") for event in sent[:10]] + [(sent[10].id, "rate_limited")]
    leads = stack.rows("SELECT id FROM nigredo.leads WHERE ip_address = %s", client)
    assert {row[0] for row in leads} == {event.id for event in sent[:10]}
    kept = rejections(stack)[sent[10].id]
    assert kept.reason == "rate_limited"
    assert kept.contact == sent[10].contact
    assert kept.retry_at is not None
    count = eventually(
        lambda: stack.rows(
            "SELECT submission_count FROM nigredo.rate_limits WHERE ip_address = %s AND submission_count = 11",
            sent[0].client_network,
        ),
        within_s=60,
        what="the network's count",
    )
    assert count == [(11,)]


def test_one_network_at_its_limit_leaves_others_alone(stack: Stack) -> None:
    full, other = any_client(), any_client()

    publish(stack, [submission(full) for _ in range(12)] + [submission(other)])

    eventually(lambda: stack.rows(VERDICTS, other), within_s=60, what="the other network's verdict")
    assert [verdict for _, verdict in stack.rows(VERDICTS, other)] == ["accepted"]


def test_the_same_record_twice_is_one_lead(stack: Stack) -> None:
    client = any_client()
    event = submission(client)
    later = submission(client)

    publish(stack, [event, event, later])

    eventually(lambda: len(stack.rows(VERDICTS, client)) == 2, within_s=60, what="both verdicts")
    leads = stack.rows("SELECT id FROM nigredo.leads WHERE ip_address = %s", client)
    assert {row[0] for row in leads} == {event.id, later.id}


def test_a_record_that_is_no_event_is_parked_and_the_stream_goes_on(stack: Stack) -> None:
    client = any_client()
    event = submission(client)
    producer = Producer(stack.producer_config(delivery_timeout_s=10))
    producer.produce(SUBMISSIONS, key=event.client_network.encode(), value=b"no event")
    producer.produce(SUBMISSIONS, key=event.client_network.encode(), value=PREFIX.pack(0, a_json_schema(stack)) + b"{}")
    assert producer.flush(15) == 0

    publish(stack, [event])

    eventually(lambda: stack.rows(VERDICTS, client), within_s=60, what="the good record's verdict")
    reader = TopicReader(stack.settings(), "test")
    parked = list(reader.read_to_end("nigredo.dead-letters", [0, 1, 2, 3], deadline_s=20))
    assert any(b"no event" in (message.value() or b"") for message in parked)
    assert any(b"not Avro" in (message.value() or b"") for message in parked)
    assert stack.nigredo("dead-letters", "discard", "--all", "--yes").code == 0


def a_json_schema(stack: Stack) -> int:
    answer = httpx.post(
        f"{stack.registry_url}/subjects/test-{uuid4()}-value/versions",
        auth=stack.registry_credentials,
        json={"schemaType": "JSON", "schema": '{"$schema": "http://json-schema.org/draft-07/schema#"}'},
        timeout=10,
    )
    return int(answer.json()["id"])


def rejections(stack: Stack) -> dict[UUID, Rejection]:
    codec, reader = codec_of(stack), TopicReader(stack.settings(), "test")
    messages = reader.read_to_end(REJECTIONS, reader.partitions(REJECTIONS), deadline_s=20)
    # A tombstone is a release.
    events = [codec.decode(REJECTIONS, value) for message in messages if (value := message.value()) is not None]
    return {event.id: event for event in events if isinstance(event, Rejection)}
