"""Resets and releases in the log, and the limiter killed among them: every verdict is the one that the log gives."""

from __future__ import annotations

import random
from collections import defaultdict
from datetime import datetime, timedelta
from uuid import UUID

from confluent_kafka import Producer

from nigredo.avro.codec import Codec
from nigredo.clock import utc_now
from nigredo.kafka.topic_reader import TopicReader
from nigredo.operations.limit_commands import LimiterCommands
from nigredo.operations.quarantine import Quarantine
from nigredo.testing import Stack, any_client, eventually
from schemas.events import Lead, LimitReset, RefusalCount, Rejection, RejectionRelease, Submission
from schemas.topics import LEADS, REJECTIONS, SUBMISSIONS
from tests.e2e.test_limit import codec_of, submission
from tests.e2e.test_limit_across_workers import decoded, lag

NETWORKS, EACH = 40, 40
HOUR = timedelta(hours=1)


def judged(stack: Stack, codec: Codec, networks: set[str]) -> tuple[dict[UUID, bool], set[UUID]]:
    """Judge the log with nothing but the definition; return each submission's verdict, and what was released."""
    counted: dict[str, list[datetime]] = defaultdict(list)
    verdicts: dict[UUID, bool] = {}
    released: set[UUID] = set()
    for event, _, _, at in sorted(decoded(stack, codec, SUBMISSIONS), key=lambda found: (found[1], found[2])):
        match event:
            case LimitReset() if event.client_network in networks:
                counted[event.client_network] = []
            case RejectionRelease() if event.client_network in networks:
                released.add(event.lead_id)
            case Submission() if event.client_network in networks:
                recent = [earlier for earlier in counted[event.client_network] if at - earlier < HOUR]
                verdicts[event.id] = len(recent) < event.limit
                counted[event.client_network] = recent + ([at] if verdicts[event.id] else [])
    return verdicts, released


def test_kills_among_resets_and_releases_change_no_verdict(stack: Stack) -> None:
    codec, chance = codec_of(stack), random.Random(11)
    clients = [any_client() for _ in range(NETWORKS)]
    networks = {submission(client).client_network for client in clients}
    producer = Producer(stack.producer_config(delivery_timeout_s=20))
    reader, quarantine = TopicReader(stack.settings(), "test"), Quarantine(LimiterCommands(stack.settings(), "test"))

    def send(clients: list[str]) -> None:
        for client in clients:
            event = submission(client)
            kind = chance.choices(["submission", "reset", "refusals"], [50, 2, 1])[0]
            other = {
                "reset": LimitReset(event.client_network, "test", utc_now()),
                "refusals": RefusalCount(event.client_network, 3, utc_now(), utc_now()),
            }
            key, value = event.client_network.encode(), codec.encode(SUBMISSIONS, other.get(kind, event))
            producer.produce(SUBMISSIONS, key=key, value=value)
        assert producer.flush(20) == 0

    mixed = [client for client in clients for _ in range(EACH)]
    chance.shuffle(mixed)
    half = len(mixed) // 2
    send(mixed[:half])
    eventually(lambda: lag(stack, reader) == 0, within_s=60, every_s=0.5, what="the end of the log")
    refused = [one for one in quarantine.kept().values() if one.rejection.client_network in networks]
    some = chance.sample(refused, 30)
    for one in some:
        key = one.rejection.client_network.encode()
        release = RejectionRelease(
            one.rejection.id, one.rejection.client_network, "test", utc_now(), one.partition, one.offset
        )
        for _ in range(2):
            producer.produce(SUBMISSIONS, key=key, value=codec.encode(SUBMISSIONS, release))
        send(chance.sample(mixed[half:], 5))
    stack.kill("rate-limiter")
    send(mixed[half:])
    stack.kill("rate-limiter")
    eventually(lambda: lag(stack, reader) == 0, within_s=120, every_s=0.5, what="the end of the log")

    expected, released = judged(stack, codec, networks)
    assert released == {one.rejection.id for one in some}
    assert len(expected) > NETWORKS * EACH * 0.8
    leads = [e for e, *_ in decoded(stack, codec, LEADS) if isinstance(e, Lead) and e.client_network in networks]
    assert {lead.id for lead in leads if not lead.released} == {each for each, accepted in expected.items() if accepted}
    assert {lead.id for lead in leads if lead.released} == released
    rejections = [e for e, *_ in decoded(stack, codec, REJECTIONS) if isinstance(e, Rejection)]
    told = {rejection.id for rejection in rejections if rejection.client_network in networks}
    assert told == {each for each, accepted in expected.items() if not accepted}
    left = {each for each, one in quarantine.kept().items() if one.rejection.client_network in networks}
    assert left == told - released
    stored = (
        "SELECT count(*), count(*) FILTER (WHERE verdict = 'released') FROM nigredo.form_submissions WHERE id = ANY(%s)"
    )
    all_leads = list({lead.id for lead in leads})
    eventually(
        lambda: stack.rows(stored, all_leads) == [(len(all_leads), len(released))], within_s=60, what="their rows"
    )
