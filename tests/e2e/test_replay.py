"""Leads are sent again exactly as asked, behind live traffic; what was delivered is left out unless it is wanted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
from confluent_kafka import ConsumerGroupTopicPartitions, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from nigredo.kafka.topic_reader import TopicReader
from nigredo.testing import Stack, eventually
from schemas.topics import LEADS

WITHIN_S = 60


def document(stack: Stack, *arguments: str) -> Any:
    done = stack.nigredo(*arguments, "--json")
    assert done.code == 0, done.err
    return json.loads(done.out)


def sent(stack: Stack) -> Counter[str]:
    """How often each lead was taken by the receiver, failed attempts aside."""
    return Counter(entry["headers"]["webhook-id"] for entry in stack.received() if entry["status"] < 300)


def delivered(stack: Stack, count: int) -> list[str]:
    ids = [stack.post().json()["id"] for _ in range(count)]
    eventually(lambda: set(ids) <= set(sent(stack)), within_s=WITHIN_S, what="the deliveries")
    settled(stack)
    return ids


def settled(stack: Stack) -> None:
    """Wait until live delivery has committed everything: a replay never goes past that."""
    settings = stack.settings(NIGREDO_ENV="dev")
    reader, group = TopicReader(settings, "test"), settings.function("webhook-sender")

    def has() -> bool:
        partitions = reader.partitions(LEADS)
        committed = reader.committed(group, LEADS, partitions)
        return all(committed[p] == reader.watermarks(LEADS, p)[1] for p in partitions)

    eventually(has, within_s=WITHIN_S, every_s=0.2, what="the sink's commit")


def a_moment() -> datetime:
    """A time with no lead in the same millisecond, on either side."""
    time.sleep(0.05)
    now = datetime.now(UTC)
    time.sleep(0.05)
    return now


@contextmanager
def failing(stack: Stack, **fault: Any) -> Iterator[None]:
    httpx.put(f"{stack.fibonacci_url}/fault", json=fault, timeout=10).raise_for_status()
    try:
        yield
    finally:
        httpx.put(f"{stack.fibonacci_url}/fault", json={}, timeout=10).raise_for_status()


@contextmanager
def paused(stack: Stack) -> Iterator[None]:
    assert stack.nigredo("webhook", "pause").code == 0
    try:
        yield
    finally:
        assert stack.nigredo("webhook", "resume").code == 0


@contextmanager
def live_posts(stack: Stack) -> Iterator[list[str]]:
    ids, stop = [], threading.Event()

    def go_on() -> None:
        while not stop.is_set():
            ids.append(stack.post().json()["id"])
            stop.wait(0.05)

    thread = threading.Thread(target=go_on)
    thread.start()
    try:
        yield ids
    finally:
        stop.set()
        thread.join(30)


def test_a_range_of_time_is_sent_exactly_while_live_leads_go_on(stack: Stack) -> None:
    delivered(stack, 3)
    begin = a_moment()
    wanted = delivered(stack, 12)
    end = a_moment()
    delivered(stack, 3)
    before = sent(stack)
    span = ("--from", begin.isoformat(), "--to", end.isoformat())

    with live_posts(stack) as live:
        assert document(stack, "replay", *span, "--yes")["to_send"] == 0
        assert document(stack, "replay", *span, "--include-delivered", "--dry-run")["to_send"] == len(wanted)
        done = document(stack, "replay", *span, "--include-delivered", "--yes")
        assert (done["written"], done["sent"], done["delivered"]) == (len(wanted),) * 3
        again = document(stack, "replay", *span, "--yes")
        assert (again["to_send"], again["delivered_already"]) == (0, len(wanted))
    eventually(lambda: set(live) <= set(sent(stack)), within_s=WITHIN_S, what="the live deliveries")

    assert sent(stack) - before == Counter(wanted) + Counter(live)
    bodies = {
        (entry["headers"]["webhook-id"], entry["body"])
        for entry in stack.received()
        if entry["headers"]["webhook-id"] in wanted
    }
    assert len(bodies) == len(wanted)


def test_attempts_of_a_replay_are_marked_and_the_live_ones_are_not(stack: Stack) -> None:
    (lead,) = delivered(stack, 1)

    document(stack, "replay", "--lead", lead, "--include-delivered", "--yes")

    rows = "SELECT is_replay, success FROM nigredo.webhook_logs WHERE lead_id = %s ORDER BY sent_at"
    eventually(
        lambda: stack.rows(rows, lead) == [(False, True), (True, True)], within_s=WITHIN_S, what="both attempts' rows"
    )


def dead_lead(stack: Stack) -> str:
    """Return a lead that the receiver refused for good; just before it took one, so that the lead is to blame."""
    delivered(stack, 1)
    with failing(stack, status=410):
        lead: str = stack.post().json()["id"]
        eventually(
            lambda: stack.nigredo("dead", "show", lead).code == 0, within_s=WITHIN_S, every_s=0.3, what="a dead lead"
        )
    return lead


def test_failed_only_sends_what_failed_and_no_delivered_lead(stack: Stack) -> None:
    begin = a_moment()
    delivered(stack, 4)
    dead = [dead_lead(stack), dead_lead(stack)]
    settled(stack)
    before = sent(stack)

    done = document(stack, "replay", "--from", begin.isoformat(), "--failed-only", "--yes")

    assert (done["delivered_already"], done["to_send"], done["delivered"]) == (6, 2, 2)
    assert sent(stack) - before == Counter(dead)
    assert document(stack, "replay", "--from", begin.isoformat(), "--failed-only", "--yes")["to_send"] == 0
    eventually(
        lambda: not set(dead) & {each["lead_id"] for each in document(stack, "dead", "list")},
        within_s=WITHIN_S,
        every_s=0.3,
        what="the end of the dead ones that were delivered after all",
    )


def test_a_dead_lead_stays_until_it_is_delivered_and_is_sent_once_however_often_it_is_asked_for(stack: Stack) -> None:
    dead = dead_lead(stack)
    (shown,) = document(stack, "dead", "show", dead)
    assert shown["status_code"] == 410
    before = sent(stack)

    with paused(stack):
        assert document(stack, "dead", "redrive", dead, "--yes", "--no-wait")["to_send"] == 1
        again = document(stack, "dead", "redrive", dead, "--yes", "--no-wait")
        assert (again["to_send"], again["waiting"]) == (0, 1)
        assert document(stack, "dead", "show", dead)
    eventually(lambda: (sent(stack) - before)[dead] == 1, within_s=WITHIN_S, what="the delivery")
    eventually(lambda: stack.nigredo("dead", "show", dead).code != 0, within_s=WITHIN_S, every_s=0.3, what="its end")
    assert (sent(stack) - before)[dead] == 1


def test_a_replay_that_was_interrupted_goes_on_by_itself_and_may_be_repeated(stack: Stack) -> None:
    begin = a_moment()
    wanted = delivered(stack, 5)
    end = a_moment()
    before = sent(stack)
    span = ("--from", begin.isoformat(), "--to", end.isoformat(), "--include-delivered", "--yes")

    with paused(stack):
        command = [sys.executable, "-m", "nigredo.cli", "--home", str(stack.home.dir), "replay", *span]
        waiting = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ)
        assert waiting.stdout is not None
        assert any("asked the sink" in line for line in waiting.stdout)
        waiting.send_signal(signal.SIGINT)
        out, err = waiting.communicate(timeout=30)
        assert waiting.returncode == 130, err
        assert "goes on by itself" in out
        again = document(stack, "replay", *span)
        assert (again["waiting"], again["to_send"]) == (len(wanted), 0)
        assert sent(stack) == before
    eventually(lambda: sent(stack) - before == Counter(wanted), within_s=WITHIN_S, what="the deliveries")


def test_an_erased_lead_is_not_sent_whoever_asks_for_it(stack: Stack) -> None:
    begin = a_moment()
    kept, erased = delivered(stack, 2)
    reader = TopicReader(stack.settings(), "test")
    found = [
        m for m in reader.read_to_end(LEADS, reader.partitions(LEADS), deadline_s=30) if m.key() == erased.encode()
    ]
    producer = Producer(stack.client_config())
    producer.produce(LEADS, key=erased.encode(), value=None, partition=found[0].partition())
    assert producer.flush(10) == 0
    settled(stack)
    before = sent(stack)

    done = document(stack, "replay", "--from", begin.isoformat(), "--include-delivered", "--yes")

    assert (done["in_range"], done["erased"], done["to_send"]) == (2, 1, 1)
    assert sent(stack) - before == Counter([kept])


def leads_from(stack: Stack, offsets: dict[int, int]) -> list[str]:
    reader, found = TopicReader(stack.settings(), "test"), []
    for partition, offset in offsets.items():
        _, end = reader.watermarks(LEADS, partition)
        messages = list(reader.between(LEADS, partition, offset, end))
        erased = {message.key() for message in messages if message.value() is None}
        found += [m.key().decode() for m in messages if m.value() is not None and m.key() not in erased]
    return found


def test_the_command_sets_the_sinks_group_back_and_exactly_the_leads_from_there_on_are_sent(stack: Stack) -> None:
    delivered(stack, 3)
    begin = a_moment()
    wanted = delivered(stack, 6)
    before = sent(stack)

    done = document(stack, "rewind", "webhook-sender", "--to-datetime", begin.isoformat(), "--yes")

    assert sum(step["records"] for step in done["partitions"]) == len(wanted)
    eventually(lambda: sent(stack) - before == Counter(wanted), within_s=WITHIN_S, what="the deliveries")
    settled(stack)
    assert sent(stack) - before == Counter(wanted)


@pytest.mark.embedded
def test_kafkas_own_tools_do_the_same_to_a_stopped_sink(stack: Stack) -> None:
    delivered(stack, 8)
    reader = TopicReader(stack.settings(), "test")
    group = stack.settings(NIGREDO_ENV="dev").function("webhook-sender")
    ends = {partition: reader.watermarks(LEADS, partition)[1] for partition in reader.partitions(LEADS)}
    back = {partition: max(0, end - 2) for partition, end in ends.items()}
    assert stack.nigredo("stop", "webhook-sender").code == 0
    try:
        before = sent(stack)
        admin = AdminClient(stack.client_config())
        wanted = [TopicPartition(LEADS, partition, offset) for partition, offset in back.items()]
        answers = admin.alter_consumer_group_offsets([ConsumerGroupTopicPartitions(group, wanted)])
        assert all(at.error is None for at in answers[group].result(15).topic_partitions)
    finally:
        assert stack.nigredo("start", "webhook-sender").code == 0
    again = Counter(leads_from(stack, back))

    eventually(lambda: sent(stack) - before == again, within_s=WITHIN_S, what="the deliveries")
    settled(stack)
    assert sent(stack) - before == again


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "one of --since"),
        (("--since", "1h", "--lead", "00000000-0000-0000-0000-000000000001"), "one of --since"),
        (("--since", "soon"), "30s, 10m, 24h"),
        (("--to", "2026-01-31T09:30:00Z", "--since", "1h"), "--to goes with --from"),
        (("--from", "2026-01-31T09:30:00Z", "--to", "2026-01-31T09:30:00Z"), "later than --from"),
        (("--from-offset", "0"), "0:1500"),
        (("--from-offset", "99:0"), "not 99"),
        (("--since", "1h", "--failed-only", "--include-delivered"), "--failed-only never sends"),
        (("--since", "1h", "--endpoint", "nobody"), "never began"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(stack: Stack, arguments: tuple[str, ...], said: str) -> None:
    done = stack.nigredo("replay", *arguments, "--yes")

    assert done.code != 0
    assert said in done.err
    assert len(done.err.splitlines()) == 1


def test_nothing_is_sent_unless_somebody_agrees(stack: Stack) -> None:
    (lead,) = delivered(stack, 1)
    before = sent(stack)

    refused = stack.nigredo("replay", "--lead", lead, "--include-delivered")

    assert refused.code != 0
    assert "--yes" in refused.err
    assert sent(stack) == before


def test_a_lead_that_there_is_not_is_an_error_and_the_others_are_sent(stack: Stack) -> None:
    (lead,), unknown = delivered(stack, 1), "00000000-0000-0000-0000-000000000001"
    before = sent(stack)

    for options in (("--dry-run",), ("--yes",), ("--yes", "--json")):
        alone = stack.nigredo("replay", "--lead", unknown, *options)
        assert alone.code != 0
        assert unknown in alone.err
        assert len(alone.err.splitlines()) == 1
    beside = stack.nigredo("replay", "--lead", unknown, "--lead", lead, "--include-delivered", "--yes", "--json")

    told = json.loads(beside.out)
    assert (told["not_found"], told["delivered"]) == (1, 1)
    assert beside.code != 0
    assert "1 of 2 not found" in beside.err
    assert sent(stack) - before == Counter([lead])


@pytest.mark.embedded
def test_a_sink_that_is_killed_amid_a_replay_sends_all_of_it_and_repeats_no_more_than_was_under_way(
    stack: Stack,
) -> None:
    begin = a_moment()
    wanted = delivered(stack, 40)
    end = a_moment()
    before = sent(stack)
    span = ("--from", begin.isoformat(), "--to", end.isoformat(), "--include-delivered", "--yes")

    with failing(stack, delay_s=0.3):
        assert document(stack, "replay", *span, "--no-wait")["written"] == len(wanted)
        eventually(lambda: sum((sent(stack) - before).values()) >= 5, within_s=WITHIN_S, what="some of it")
        under_way = stack.settings().webhook_in_flight_max
        stack.kill("webhook-sender")
    eventually(
        lambda: document(stack, "replay", *span, "--dry-run")["waiting"] == 0,
        within_s=90,
        every_s=0.5,
        what="the end of the replay",
    )

    again = sent(stack) - before
    assert set(again) == set(wanted)
    assert sum(again.values()) - len(wanted) <= under_way
