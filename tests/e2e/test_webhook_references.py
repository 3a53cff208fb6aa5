"""Retries and replays beside live leads, rewinds and restarts: each lead comes as often as asked, none late."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from uuid import UUID

import pytest

from nigredo.clock import utc_now
from nigredo.kafka.consumer_groups import commit_offsets
from nigredo.testing import Stack, eventually
from schemas.events import Event, WebhookReplay, WebhookRetry
from schemas.topics import LEADS, WEBHOOK_REPLAYS, retry_topic
from tests.support.webhook_rig import TAKING, Request, Sink, answering, sink

PLACES = 8
PARTITION = 0


@pytest.fixture(scope="module")
def mine(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sink]:
    more = f"in_flight_max = {PLACES}"
    with sink(stack, tmp_path_factory.mktemp("sink"), more=more, WEBHOOK_RETRY_SCHEDULE="0.2s,8m,8m") as found:
        found.start()
        yield found


def delivered(mine: Sink, count: int) -> dict[str, int]:
    """Return leads that the receiver has, with their offsets."""
    leads = set(mine.leads(count, partition=PARTITION))
    eventually(lambda: leads <= set(mine.receiver.ids()), within_s=60, what="the deliveries")
    eventually(lambda: mine.committed() == mine.ends(), within_s=60, every_s=0.2, what="the offsets")
    keys = [((message.key() or b"").decode(), message.offset() or 0) for message in mine.records(LEADS)]
    return {lead_id: offset for lead_id, offset in keys if lead_id in leads}


def replays(mine: Sink, leads: dict[str, int]) -> dict[bytes, Event | None]:
    now = utc_now()
    return {
        f"{lead_id}:{mine.name}".encode(): WebhookReplay(UUID(lead_id), mine.name, "test", now, PARTITION, offset)
        for lead_id, offset in leads.items()
    }


def test_while_live_leads_come_a_replay_takes_a_part_of_the_places_and_all_of_it_is_sent(mine: Sink) -> None:
    old = delivered(mine, 40)
    under_way: Counter[bool] = Counter()
    most: Counter[bool] = Counter()

    async def slow(request: Request, writer: asyncio.StreamWriter) -> None:
        replay = request.lead_id in old
        under_way[replay] += 1
        most[replay] = max(most[replay], under_way[replay])
        await asyncio.sleep(0.1)
        under_way[replay] -= 1
        await TAKING(request, writer)

    mine.receiver.behaviour = slow
    live = mine.leads(1)
    mine.publish(WEBHOOK_REPLAYS, replays(mine, old), partition=PARTITION)

    def over() -> bool:
        live.extend(mine.leads(PLACES))
        eventually(lambda: set(live) <= set(mine.receiver.ids()), within_s=60, what="live leads beside the replay")
        return all(len(mine.receiver.of(lead_id)) == 2 for lead_id in old)

    eventually(over, within_s=60, what="the replay")
    mine.receiver.behaviour = TAKING
    assert most[True] == 1, "one of eight places is what a replay gets"
    assert most[False] > 1
    assert max(Counter(mine.receiver.ids()).values()) == 2


@pytest.mark.parametrize("kind", ["retry", "replay"])
def test_what_was_settled_is_not_sent_again_when_it_is_read_again(mine: Sink, kind: str) -> None:
    """It stands above what was committed, as behind one that waits for long; its end comes much later in the log."""
    old = delivered(mine, 700)
    now = utc_now()
    topic, standing = WEBHOOK_REPLAYS, replays(mine, old)
    if kind == "retry":
        topic = retry_topic(mine.name, "1h")
        mine.codec.prepare([topic])
        standing = {
            lead_id.encode(): WebhookRetry(UUID(lead_id), mine.name, 2, now, now, PARTITION, offset, False)
            for lead_id, offset in old.items()
        }
    mine.stop()
    mine.publish(topic, standing, partition=PARTITION)
    mine.publish(topic, dict.fromkeys(standing), partition=PARTITION)

    mine.start()

    eventually(lambda: mine.committed(topic) == mine.ends(topic), within_s=60, every_s=0.2, what="all of it is read")
    assert {len(mine.receiver.of(lead_id)) for lead_id in old} == {1}


def test_a_retry_is_settled_as_soon_as_a_rewind_has_delivered_its_lead(mine: Sink) -> None:
    """At once, not when its time comes: until then the sink may have been started again, and know nothing of it."""
    mine.receiver.behaviour = answering(503)
    (lead_id,) = mine.leads(1, partition=PARTITION)
    topic, place = retry_topic(mine.name, "1m"), (lead_id.encode(), PARTITION)
    mine.codec.prepare([topic])
    waits = eventually(lambda: mine.standing(topic).get(place), within_s=60, every_s=0.2, what="the retry")
    assert isinstance(waits, WebhookRetry)
    eventually(lambda: mine.committed() == mine.ends(), within_s=60, every_s=0.2, what="the offsets pass it")
    mine.stop()
    mine.receiver.behaviour = TAKING
    commit_offsets(mine.settings, mine.group, LEADS, {PARTITION: waits.lead_offset})

    mine.start()

    eventually(lambda: place not in mine.standing(topic), within_s=60, every_s=0.2, what="the end of the retry")
    assert utc_now() < waits.not_before
    assert [request.headers["nigredo-attempt"] for request in mine.receiver.of(lead_id)] == ["1", "2", "1"]
