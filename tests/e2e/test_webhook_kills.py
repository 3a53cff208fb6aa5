"""A sink that is killed, or frozen past its session, under load: nothing lost, and no more repeated than is told."""

from __future__ import annotations

import json
import signal
from collections import Counter
from collections.abc import Iterator
from uuid import UUID

import pytest

from nigredo.clock import utc_now
from nigredo.testing import Stack, eventually
from schemas.events import WebhookReplay
from schemas.topics import LEADS, WEBHOOK_REPLAYS
from tests.support.webhook_rig import Sink, sink

IN_FLIGHT = 8
KILLS = 4


@pytest.fixture
def mine(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sink]:
    with sink(stack, tmp_path_factory.mktemp("kills"), more=f"in_flight_max = {IN_FLIGHT}") as found:
        yield found


def test_kill_9_under_load_loses_nothing_and_repeats_at_most_what_was_in_flight(mine: Sink) -> None:
    leads: list[str] = []
    mine.start()
    for _ in range(KILLS):
        told = eventually(lambda: mine.health().get("repeats_after_kill_max"), within_s=60, what="what it may repeat")
        before = len(mine.receiver.requests)
        leads += mine.leads(400)
        eventually(lambda start=before: len(mine.receiver.requests) > start + 50, within_s=60, what="deliveries")
        mine.kill()
        mine.start()

    eventually(lambda: set(leads) <= set(mine.receiver.ids()), within_s=90, what="every lead")
    counts = Counter(mine.receiver.ids())
    repeated = sum(count - 1 for count in counts.values())
    assert told == IN_FLIGHT
    assert repeated <= KILLS * told
    bodies = {(request.lead_id, request.body) for request in mine.receiver.requests}
    assert len(bodies) == len(counts)
    assert all(json.loads(body)["lead"]["id"] == lead_id for lead_id, body in bodies)


@pytest.mark.thorough
def test_kill_9_amid_a_replay_sends_all_of_it_and_repeats_at_most_what_was_in_flight(mine: Sink) -> None:
    mine.start()
    leads = set(mine.leads(600))
    eventually(lambda: leads <= set(mine.receiver.ids()), within_s=60, what="the deliveries")
    eventually(lambda: mine.committed() == mine.ends(), within_s=60, every_s=0.2, what="all committed")
    found = {(m.key() or b"").decode(): (m.partition() or 0, m.offset() or 0) for m in mine.records(LEADS)}
    now = utc_now()
    for number in mine.ends():
        mine.publish(
            WEBHOOK_REPLAYS,
            {
                f"{lead_id}:{mine.name}".encode(): WebhookReplay(UUID(lead_id), mine.name, "test", now, *place)
                for lead_id, place in found.items()
                if lead_id in leads and place[0] == number
            },
            partition=number,
        )

    eventually(lambda: len(mine.receiver.requests) > len(leads) + 200, within_s=60, what="a part of the replay")
    mine.kill()
    mine.start()

    eventually(
        lambda: mine.committed(WEBHOOK_REPLAYS) == mine.ends(WEBHOOK_REPLAYS), within_s=60, every_s=0.2, what="its end"
    )
    counts = Counter(mine.receiver.ids())
    assert set(counts) == leads
    assert min(counts.values()) == 2
    assert sum(counts.values()) - 2 * len(leads) <= IN_FLIGHT


def test_a_frozen_one_commits_nothing_when_it_wakes_and_no_lead_is_lost(mine: Sink) -> None:
    zombie = mine.start()
    first = mine.leads(100)
    eventually(lambda: set(first) <= set(mine.receiver.ids()), within_s=60, what="the first deliveries")
    leads = mine.leads(2000)
    zombie.send_signal(signal.SIGSTOP)
    try:
        mine.start()  # It gets the partitions once the session of the other is over.
        eventually(lambda: set(leads) <= set(mine.receiver.ids()), within_s=90, what="every lead")
        eventually(lambda: mine.committed() == mine.ends(), within_s=60, every_s=0.2, what="all committed")
        stood = mine.committed()
    finally:
        zombie.send_signal(signal.SIGCONT)

    def is_back() -> bool:
        # Nobody has anything to commit: what the zombie commits of what it had in hand stays to be seen.
        assert mine.committed() == stood, "a commit of the zombie"
        return mine.members() == 2

    eventually(is_back, within_s=60, every_s=0.2, what="it is a member again")
    eventually(lambda: mine.health(zombie).get("waiting_for", "") is None, within_s=60, what="it has partitions")
    assert mine.committed() == stood, "a commit of the zombie"
    more = mine.leads(100)
    eventually(lambda: set(more) <= set(mine.receiver.ids()), within_s=60, what="the last leads")
    eventually(lambda: mine.committed() == mine.ends(), within_s=60, every_s=0.2, what="all committed")
    counts = Counter(mine.receiver.ids())
    # What either had under way when the partitions changed hands, and back.
    assert sum(count - 1 for count in counts.values()) <= 3 * IN_FLIGHT
