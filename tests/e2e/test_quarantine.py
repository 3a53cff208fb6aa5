"""Refused submissions: seen without what people wrote, and put through once, however often it is asked for."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from dataclasses import replace
from typing import Any
from uuid import UUID, uuid4

import pytest
from confluent_kafka import Producer

from nigredo.clock import utc_now
from nigredo.kafka.topic_reader import TopicReader
from nigredo.operations.limit_commands import LimiterCommands
from nigredo.operations.quarantine import Quarantine
from nigredo.testing import Stack, any_client, eventually
from schemas.events import Contact, Lead, Rejection, RejectionRelease, Submission
from schemas.topics import LEADS, REJECTIONS
from tests.e2e.test_control import nigredo
from tests.e2e.test_freeing import audited, counted
from tests.e2e.test_limit import codec_of, publish, submission
from tests.e2e.test_limit_across_workers import decoded

VERDICT = "SELECT verdict FROM nigredo.form_submissions WHERE id = %s"
SECRET = Contact("Zenobia", "zenobia@example.com", "my secret \x1b[2J", {"phone": "+55 0815 phone"})


def refused(stack: Stack, client: str, **changes: Any) -> Submission:
    """Send eleven of a client; return the last one, which is in quarantine."""
    sent = [submission(client) for _ in range(10)]
    sent.append(replace(submission(client), contact=SECRET, **changes))
    publish(stack, sent)
    eventually(lambda: stack.rows(VERDICT, sent[-1].id), within_s=60, what="its verdict")
    return sent[-1]


def leads(stack: Stack, lead_id: UUID) -> list[Lead]:
    return [e for e, *_ in decoded(stack, codec_of(stack), LEADS) if isinstance(e, Lead) and e.id == lead_id]


def quarantine(stack: Stack) -> Quarantine:
    return Quarantine(LimiterCommands(stack.settings(), "test"))


@pytest.mark.parametrize("reason", ["rate_limited", "spam"])
def test_a_refused_submission_is_put_through_once_however_often_it_is_asked_for(stack: Stack, reason: str) -> None:
    client = any_client()
    event = refused(stack, client, edge_verdict="spam" if reason == "spam" else None)
    assert stack.rows(VERDICT, event.id) == [(reason,)]
    kept = quarantine(stack).kept(ids=[event.id])[event.id]

    told = json.loads(nigredo(stack, "quarantine", "release", str(event.id), "--yes", "--json"))

    assert told == [
        {"id": str(event.id), "released": True, "partition": told[0]["partition"], "offset": told[0]["offset"]}
    ]
    (lead,) = leads(stack, event.id)
    assert (lead.released, lead.contact, lead.taken_at) == (True, SECRET, event.taken_at)
    assert quarantine(stack).kept(ids=[event.id]) == {}
    assert tombstones(stack, event.id) == [kept.partition]
    eventually(lambda: stack.rows(VERDICT, event.id) == [("released",)], within_s=60, what="its verdict")
    eventually(lambda: deliveries(stack, event.id), within_s=60, what="its webhook")
    assert stack.rows("SELECT email FROM nigredo.leads WHERE id = %s", event.id) == [("zenobia@example.com",)]

    assert "put through before" in nigredo(stack, "quarantine", "release", str(event.id), str(event.id), "--yes")
    # The same command once more, and at once: somebody pressed twice, or the log was read again.
    again = [RejectionRelease(event.id, event.client_network, "test", utc_now(), kept.partition, kept.offset)] * 3
    commands = LimiterCommands(stack.settings(), "test")
    commands.wait_handled(commands.release(again), deadline_s=30)

    assert len(leads(stack, event.id)) == 1
    assert deliveries(stack, event.id) == 1
    # It was outside the limit: nothing of the network's count moved, and it is still full.
    assert counted(stack, event.client_network) == [(11,)]
    later = submission(client)
    publish(stack, [later])
    eventually(lambda: stack.rows(VERDICT, later.id) == [("rate_limited",)], within_s=60, what="the limit")
    assert len(audited(stack, "rejection.release", str(event.id))) == 1 + 3


def deliveries(stack: Stack, lead_id: UUID) -> int:
    return sum(hook["headers"]["webhook-id"] == str(lead_id) for hook in stack.received())


def tombstones(stack: Stack, lead_id: UUID) -> list[int]:
    reader = TopicReader(stack.settings(), "test")
    messages = reader.read_to_end(REJECTIONS, reader.partitions(REJECTIONS), deadline_s=20)
    return [m.partition() or 0 for m in messages if m.key() == str(lead_id).encode() and m.value() is None]


def test_a_release_for_a_network_that_the_limiter_forgot_happens_once_too(stack: Stack) -> None:
    """Nothing but the tombstone can tell then. The rejection lies where no hash would have put it."""
    one, codec = submission(any_client()), codec_of(stack)
    codec.prepare([REJECTIONS])
    rejection = Rejection(
        one.id, one.client_network, one.ip_address, None, None, None, SECRET, one.taken_at, one.taken_at,
        "rate_limited", None, 0, 0,
    )  # fmt: skip
    producer = Producer(stack.producer_config(delivery_timeout_s=10))
    key, value = str(one.id).encode(), codec.encode(REJECTIONS, rejection)
    producer.produce(REJECTIONS, key=key, value=value, partition=3 if one.id.int % 2 else 1)
    assert producer.flush(15) == 0
    kept = quarantine(stack).kept(ids=[one.id])[one.id]
    release = RejectionRelease(one.id, one.client_network, "test", utc_now(), kept.partition, kept.offset)
    commands = LimiterCommands(stack.settings(), "test")

    for _ in range(2):
        commands.wait_handled(commands.release([release, release]), deadline_s=30)

    assert len(leads(stack, one.id)) == 1
    assert tombstones(stack, one.id) == [kept.partition]
    assert counted(stack, one.client_network) == []


def test_the_limiter_killed_among_releases_puts_each_through(stack: Stack) -> None:
    events = [refused(stack, any_client()) for _ in range(8)]
    kept = quarantine(stack).kept(ids=[event.id for event in events])
    commands = LimiterCommands(stack.settings(), "test")
    releases = [
        RejectionRelease(one.rejection.id, one.rejection.client_network, "test", utc_now(), one.partition, one.offset)
        for one in kept.values()
    ]

    positions = commands.release(releases[:4])
    stack.kill("rate-limiter")
    positions += commands.release(releases)
    commands.wait_handled(positions, deadline_s=90)

    assert quarantine(stack).kept(ids=[event.id for event in events]) == {}
    for event in events:
        # A crash between lead and tombstone may repeat the record; the database has it once.
        assert leads(stack, event.id)
        eventually(lambda e=event: stack.rows(VERDICT, e.id) == [("released",)], within_s=60, what="its row")


def test_what_is_listed_and_shown_is_nothing_that_people_wrote(stack: Stack) -> None:
    event = refused(stack, any_client(), source="ad\x1b[2J")
    lead_id = str(event.id)

    listed = nigredo(stack, "quarantine", "list", "--reason", "rate_limited", "--last", "1h", "--limit", "1000")
    shown = nigredo(stack, "quarantine", "show", lead_id)
    documents = json.loads(nigredo(stack, "quarantine", "list", "--limit", "1000", "--json"))

    (line,) = [line for line in listed.splitlines() if line.startswith(lead_id)]
    assert event.client_network in line
    assert "\x1b" not in listed + shown
    assert {"id", "submitted_at", "client_network", "reason", "spam_sign", "source"} == set(documents[0])
    assert [one for one in documents if one["id"] == lead_id]
    for text in (listed, shown, json.dumps(documents)):
        assert not [word for word in ("Zenobia", "zenobia", "secret", "0815 phone") if word in text]
    assert lead_id not in nigredo(stack, "quarantine", "list", "--reason", "spam", "--limit", "1000")
    assert len(nigredo(stack, "quarantine", "list", "--limit", "1").splitlines()) <= 2


def test_what_a_person_wrote_is_shown_when_asked_for_on_a_terminal_alone(stack: Stack) -> None:
    lead_id = str(refused(stack, any_client()).id)

    piped = stack.nigredo("quarantine", "show", lead_id, "--content")
    assert (piped.code, piped.out) == (1, "")
    assert "terminal" in piped.err

    screen = on_a_terminal(stack, "quarantine", "show", lead_id, "--content")
    assert "zenobia@example.com" in screen
    # What a form says cannot clear the screen, or worse.
    assert "\x1b" not in screen
    assert "my secret \\x1b[2J" in screen


def on_a_terminal(stack: Stack, *arguments: str) -> str:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "nigredo.cli", "--home", str(stack.home.dir), *arguments]
    try:
        done = subprocess.run(command, stdout=theirs, stderr=subprocess.PIPE, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        return os.read(ours, 65536).decode()
    finally:
        os.close(ours)
        os.close(theirs)


def test_what_is_not_in_quarantine_is_not_put_through_and_nothing_is_without_a_yes(stack: Stack) -> None:
    event = refused(stack, any_client())

    unknown = stack.nigredo("quarantine", "release", str(event.id), str(uuid4()), "--yes")
    assert (unknown.code, len(unknown.err.strip().splitlines())) == (1, 1)
    assert "nothing was put through" in unknown.err
    unconfirmed = stack.nigredo("quarantine", "release", str(event.id))
    assert unconfirmed.code == 1
    assert stack.nigredo("quarantine", "release", "nonsense", "--yes").code == 2
    assert stack.nigredo("quarantine", "show", str(uuid4())).code == 1

    assert leads(stack, event.id) == []
    assert list(quarantine(stack).kept(ids=[event.id])) == [event.id]
