"""A registry that was lost, put back, or is somebody else's by now: what is in the log keeps its meaning.

The cases are told in order to one stack: each leaves it well.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx
import psycopg
import pytest
from confluent_kafka.schema_registry import SchemaRegistryClient, topic_subject_name_strategy
from confluent_kafka.schema_registry.avro import AvroDeserializer
from confluent_kafka.serialization import MessageField, SerializationContext

from nigredo.kafka.pinned_schemas import read_pins
from nigredo.kafka.topic_reader import TopicReader
from nigredo.stack.home import Home
from nigredo.testing import Stack, eventually, running_stack
from schemas.topics import DEAD_LETTERS, LEADS

pytestmark = pytest.mark.embedded
FORMS = 40
OURS = ("ingest", "rate-limiter", "persister", "webhook-sender")


@pytest.fixture(scope="module")
def own() -> Iterator[Stack]:
    if home := os.environ.get("NIGREDO_TEST_HOME"):
        yield Stack(Home.open(Path(home)))
        return
    with running_stack() as stack:
        yield stack


@pytest.fixture(scope="module", autouse=True)
def _nothing_received_yet() -> None:
    """Not of the shared stack, which these cases do without."""


def test_a_registry_that_was_emptied_gets_its_ids_back_and_readers_outside_find_them(own: Stack) -> None:
    before = taken_and_handled(own)
    change_registry(own, "DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    taken_and_handled(own)
    assert not read_outside(own, before)
    pins = list(read_pins(TopicReader(own.settings(), "test")))

    told = own.nigredo("topics", "ensure")

    assert (told.code, told.err) == (0, "")
    assert told.out.count("back to the registry") == len(pins)
    assert read_outside(own, before)
    assert own.nigredo("topics", "ensure").out.strip() == "nothing to change"
    assert own.nigredo("schemas", "check").code == 0
    for subject in httpx.get(f"{own.registry_url}/subjects", auth=own.registry_credentials, timeout=10).json():
        assert subject.startswith("nigredo.")
        assert (
            httpx.get(
                f"{own.registry_url}/subjects/{subject}/versions/latest", auth=own.registry_credentials, timeout=10
            ).status_code
            == 200
        )


def test_nothing_running_or_restarting_needs_a_registry_or_the_folder_of_the_state(own: Stack) -> None:
    assert own.nigredo("stop", "registry").code == 0
    shutil.rmtree(own.home.dir / "state" / "schemas", ignore_errors=True)
    for part in OURS:
        restarted = own.nigredo("restart", part)
        assert (restarted.code, restarted.err) == (0, "")

    taken_and_handled(own)

    assert own.nigredo("start", "registry").code == 0


def test_a_registry_that_was_put_back_to_before_an_upgrade_learns_what_came_after_it(own: Stack) -> None:
    """The newest versions of submissions, rejections and rate limits are unknown to it, and all after them."""
    before = taken_and_handled(own)
    change_registry(
        own,
        "DELETE FROM branch_versions; DELETE FROM versions WHERE contentid > 2;"
        "DELETE FROM content WHERE contentid > 2;"
        "DELETE FROM artifacts WHERE artifactid NOT IN (SELECT artifactid FROM versions);"
        "UPDATE sequences SET seqvalue = 2 WHERE seqname = 'contentId'",
    )
    taken_and_handled(own)

    assert own.nigredo("topics", "ensure").code == 0

    assert own.nigredo("schemas", "check").code == 0
    assert read_outside(own, before)
    taken_and_handled(own)


@pytest.mark.thorough
def test_ids_that_became_somebody_elses_are_refused_and_lose_nothing_until_they_are_repaired(own: Stack) -> None:
    before = taken_and_handled(own)
    change_registry(own, "DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    for number in range(max(id_of(own, topic) for topic in (LEADS, "nigredo.submissions"))):
        register(own, f"stranger-{number}-value", {"type": "fixed", "name": f"F{number}", "size": 16})
    taken_and_handled(own)

    refused = own.nigredo("topics", "ensure")
    assert refused.code == 1
    assert "nigredo.submissions-value" in refused.err
    assert "stranger-" in refused.err
    assert "`nigredo schemas repair`" in refused.err
    for part in ("rate-limiter", "webhook-sender"):
        assert own.nigredo("restart", part).code == 0
    taken_and_handled(own)

    assert own.nigredo("down").code == 0
    up = own.nigredo("up", "--detach")
    assert up.code == 3
    assert "`nigredo schemas repair`" in up.err
    assert "stranger-" in own.status()["steps"]["schemas"]["waiting_for"]
    assert own.nigredo("status").code == 1
    taken_and_handled(own)
    wanted = own.nigredo("schemas", "repair", "--dry-run")
    assert wanted.out.count("a fresh id would take its place") == refused.err.count("in the registry")
    repaired = own.nigredo("schemas", "repair")
    assert (repaired.code, repaired.err) == (0, "")

    eventually(lambda: own.status()["ready"], within_s=60, what="a stack that is well")
    for part in OURS:
        assert own.nigredo("restart", part).code == 0
    after = taken_and_handled(own)
    assert read_outside(own, after)
    assert not read_outside(own, before)
    assert own.nigredo("topics", "ensure").out.strip() == "nothing to change"
    assert own.nigredo("schemas", "check").code == 1


# --- what the cases share ---------------------------------------------------------------------------------------------


def taken_and_handled(stack: Stack) -> set[str]:
    """Post forms and wait until each has its row and its webhook; nothing is parked. Return the leads."""

    def taken() -> str:
        answer = stack.post()
        # On a busy machine Kafka may take longer than a person is kept waiting.
        assert answer.status_code in (202, 503)
        return str(answer.json()["id"]) if answer.status_code == 202 else ""

    ids = {eventually(taken, within_s=60, every_s=0.2, what="a form that is taken") for _ in range(FORMS)}
    query = "SELECT id::text FROM nigredo.leads WHERE id::text = ANY(%s)"
    eventually(lambda: len(stack.rows(query, list(ids))) == FORMS, within_s=90, every_s=0.2, what="a row of each lead")

    def delivered() -> bool:
        return ids <= {request["headers"]["webhook-id"] for request in stack.received()}

    eventually(delivered, within_s=90, every_s=0.2, what="a webhook of each lead")
    reader = TopicReader(stack.settings(), "test")
    assert list(reader.read_to_end(DEAD_LETTERS, reader.partitions(DEAD_LETTERS), deadline_s=30)) == []
    return ids


def change_registry(stack: Stack, sql: str) -> None:
    """Change the registry's database behind its back, and let it begin with that."""
    conninfo = stack.home.conninfo("apicurio").replace("dbname=fibonacci", "dbname=apicurio")
    with psycopg.connect(conninfo, autocommit=True) as database:
        database.execute(sql.encode())
    assert stack.nigredo("restart", "registry").code == 0


def register(stack: Stack, subject: str, schema: object) -> None:
    answer = httpx.post(
        f"{stack.registry_url}/subjects/{subject}/versions",
        auth=stack.registry_credentials,
        json={"schema": json.dumps(schema)},
        timeout=10,
    )
    assert answer.status_code == 200


def id_of(stack: Stack, topic: str) -> int:
    """Return the id under which a topic is written."""
    pins = read_pins(TopicReader(stack.settings(), "test"))
    return max(pin.id for pin in pins if pin.subject == f"{topic}-value")


def read_outside(stack: Stack, leads: set[str]) -> bool:
    """Say whether Confluent's own deserializer reads these leads, by what the registry says."""
    client = SchemaRegistryClient({"url": stack.registry_url, "timeout": 10, "max.retries": 1} | stack.registry_proof)
    deserializer = AvroDeserializer(client, conf={"subject.name.strategy": topic_subject_name_strategy})
    reader, found = TopicReader(stack.settings(), "test"), set()
    for message in reader.read_to_end(LEADS, reader.partitions(LEADS), deadline_s=30):
        if (message.key() or b"").decode() in leads:
            try:
                read = deserializer(message.value(), SerializationContext(LEADS, MessageField.VALUE))
            except Exception:
                return False
            if isinstance(read, dict):
                found.add(str(read["id"]))
    return found == leads
