"""Disasters that may befall a stack's log, database or registry, each done to a running stack as it happens in life."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import httpx
import psycopg
from confluent_kafka import ConsumerGroupState, KafkaError, KafkaException
from confluent_kafka.admin import AdminClient, NewPartitions

from nigredo.errors import NigredoError
from nigredo.stack import supervisor_socket as control
from nigredo.testing import START_DEADLINE_S, Stack, eventually, run_nigredo
from schemas.topics import CONTROL, DELIVERIES, LEADS, RATE_LIMITS, SUBMISSIONS
from tests.chaos.log_files import cut_tail

READERS = ("rate-limiter", "persister", "webhook-sender")
STRANGERS = 40
"""Schemas of others: more than the product has, so that every id of the product's is taken."""
CALL_TIMEOUT_S = 10.0
STEP_WITHIN_S = 90.0
ASK_FOR_START_S = 3.0
EMPTY_REGISTRY = "DROP SCHEMA public CASCADE; CREATE SCHEMA public"
BEFORE_AN_UPGRADE = (
    "DELETE FROM branch_versions; DELETE FROM versions WHERE contentid > 2;"
    "DELETE FROM content WHERE contentid > 2;"
    "DELETE FROM artifacts WHERE artifactid NOT IN (SELECT artifactid FROM versions);"
    "UPDATE sequences SET seqvalue = 2 WHERE seqname = 'contentId'"
)
"""The newest versions of submissions, rejections and rate limits are gone with all that came after them."""
Harm = Callable[[Stack], None]


class Timing(StrEnum):
    """Start of the processes that read the log, beside the disaster and the forms after it."""

    RUNS_ON = "runs-on"
    RESTARTED = "restarted"
    """Killed and started again between the disaster and the forms."""
    LATE = "late"
    """Away during the disaster, and started only after the forms, when the log has grown again."""


@dataclass(frozen=True, slots=True)
class Disaster:
    """One kind of harm. `prepare` is done before the forms that may get lost."""

    name: str
    harm: Harm
    prepare: Harm | None = None
    timings: Sequence[Timing] = tuple(Timing)
    """The first is the one of a short run."""
    loses_leads: bool = False
    """Whether stored leads may be gone for good: rows included."""


def strike(stack: Stack, disaster: Disaster, timing: Timing, send: Callable[[], None]) -> None:
    """Do the harm, and call `send` after it, once the log takes forms or might."""
    if timing is Timing.LATE:
        for part in READERS:
            _do(stack, "stop", part)
    disaster.harm(stack)
    if timing is Timing.RESTARTED:
        for part in (*READERS, "ingest"):
            stack.kill(part)
    send()
    if timing is Timing.LATE:
        for part in READERS:
            start_soon(stack, part)


def start_soon(stack: Stack, part: str) -> None:
    """Let the supervisor start a part, without waiting until it is ready: it may have reasons not to be."""
    with suppress(NigredoError):
        control.ask(stack.home, {"do": "start", "part": part}, deadline_s=ASK_FOR_START_S)


# --- the registry -----------------------------------------------------------------------------------------------------


def empty_registry(stack: Stack) -> None:
    """Lose the registry's database."""
    _change_registry(stack, EMPTY_REGISTRY)


def begin_registry_with_a_stranger(stack: Stack) -> None:
    """Lose the registry's database, and let others register so many schemas first that all ids are theirs."""
    proof = stack.registry_credentials
    _change_registry(stack, EMPTY_REGISTRY)
    for number in range(STRANGERS):
        schema = f'{{"type": "fixed", "name": "F{number}", "size": 16}}'
        url = f"{stack.registry_url}/subjects/stranger-{number}-value/versions"
        httpx.post(url, json={"schema": schema}, auth=proof, timeout=CALL_TIMEOUT_S).raise_for_status()


def put_registry_back(stack: Stack) -> None:
    """Put the registry's database back to before an upgrade."""
    _change_registry(stack, BEFORE_AN_UPGRADE)


def lose_state(stack: Stack) -> None:
    """Lose the state folder, which holds what a node knows beside the log."""
    shutil.rmtree(stack.home.dir / "state" / "schemas", ignore_errors=True)


def _change_registry(stack: Stack, sql: str) -> None:
    _do(stack, "stop", "registry")
    conninfo = stack.home.conninfo("apicurio").replace("dbname=fibonacci", "dbname=apicurio")
    with psycopg.connect(conninfo, autocommit=True) as database:
        database.execute(sql.encode())
    _do(stack, "start", "registry")


# --- PostgreSQL -------------------------------------------------------------------------------------------------------


def lose_database(stack: Stack) -> None:
    """Lose the cluster of PostgreSQL, and start an empty one, under running processes."""
    _do(stack, "stop", "postgres")
    shutil.rmtree(stack.home.dir / "postgres")
    _do(stack, "start", "postgres")
    _nigredo(stack, "migrate")
    # Its own database was in there too.
    _do(stack, "restart", "registry")


def empty_tables(stack: Stack) -> None:
    """Empty every table of the product, under running processes."""
    tables = stack.rows("SELECT tablename FROM pg_tables WHERE schemaname = 'nigredo' AND tablename <> 'migrations'")
    with stack.database() as database:
        database.execute(f"TRUNCATE {', '.join(f'nigredo.{name}' for (name,) in tables)}".encode())


# --- Kafka's disk -----------------------------------------------------------------------------------------------------


def cut_leads(stack: Stack) -> None:
    """Lose the newest leads of each partition."""
    _cut(stack, LEADS)


def cut_submissions(stack: Stack) -> None:
    """Lose the newest submissions of each partition."""
    _cut(stack, SUBMISSIONS)


def _cut(stack: Stack, topic: str) -> None:
    _do(stack, "stop", "kafka")
    cut_tail(_kafka_data(stack), topic, share=0.3)
    _do(stack, "start", "kafka")


def take_snapshot(stack: Stack) -> None:
    """Copy the disk of Kafka, whole and at rest."""
    _do(stack, "stop", "kafka")
    shutil.rmtree(_snapshot(stack), ignore_errors=True)
    shutil.copytree(_kafka_data(stack), _snapshot(stack))
    _do(stack, "start", "kafka")


def put_snapshot_back(stack: Stack) -> None:
    """Put the disk of Kafka back to the copy."""
    _do(stack, "stop", "kafka")
    shutil.rmtree(_kafka_data(stack))
    _snapshot(stack).rename(_kafka_data(stack))
    _do(stack, "start", "kafka")


def lose_kafka_live(stack: Stack) -> None:
    """Lose all of Kafka's data under running processes; the topics are made again at once."""
    _do(stack, "stop", "kafka")
    shutil.rmtree(_kafka_data(stack))
    _do(stack, "start", "kafka")
    _nigredo(stack, "topics", "ensure")


def lose_kafka_stopped(stack: Stack) -> None:
    """Lose all of Kafka's data while the stack is down."""
    _nigredo(stack, "down")
    shutil.rmtree(_kafka_data(stack))
    run_nigredo("--home", str(stack.home.dir), "up", "--detach", deadline_s=START_DEADLINE_S)


def _kafka_data(stack: Stack) -> Path:
    return stack.home.dir / "kafka" / "data"


def _snapshot(stack: Stack) -> Path:
    return stack.home.dir / "kafka" / "data.snapshot"


# --- topics, partitions and groups ------------------------------------------------------------------------------------


def made_again(*topics: str) -> Harm:
    """Return the harm that deletes topics and makes them again, under running processes."""

    def harm(stack: Stack) -> None:
        admin = AdminClient(stack.client_config())
        for deleted in admin.delete_topics(list(topics), request_timeout=CALL_TIMEOUT_S).values():
            deleted.result(CALL_TIMEOUT_S + 2)
        eventually(
            lambda: not set(topics) & set(admin.list_topics(timeout=CALL_TIMEOUT_S).topics),
            within_s=STEP_WITHIN_S,
            what=f"the end of {', '.join(topics)}",
        )
        _nigredo(stack, "topics", "ensure")

    return harm


def add_partitions(stack: Stack) -> None:
    """Give submissions and leads twice the partitions, under running processes."""
    admin = AdminClient(stack.client_config())
    known = admin.list_topics(timeout=CALL_TIMEOUT_S).topics
    wanted = [NewPartitions(topic, 2 * len(known[topic].partitions)) for topic in (SUBMISSIONS, LEADS)]
    for added in admin.create_partitions(wanted, request_timeout=CALL_TIMEOUT_S).values():
        added.result(CALL_TIMEOUT_S + 2)


def delete_offsets(stack: Stack) -> None:
    """Delete the offsets of the limiter's and the sender's groups, which Kafka allows only without members."""
    parts, admin = ("rate-limiter", "webhook-sender"), AdminClient(stack.client_config())
    settings = stack.settings()
    groups = [settings.function(part) for part in parts]
    status = stack.status()["parts"]
    for part in parts:
        _do(stack, "stop", part)

    def deleted() -> bool:
        states = admin.describe_consumer_groups(groups, request_timeout=CALL_TIMEOUT_S)
        if any(one.result(CALL_TIMEOUT_S + 2).state == ConsumerGroupState.STABLE for one in states.values()):
            return False
        for group in admin.delete_consumer_groups(groups, request_timeout=CALL_TIMEOUT_S).values():
            try:
                group.result(CALL_TIMEOUT_S + 2)
            except KafkaException as error:
                if error.args[0].code() == KafkaError.NON_EMPTY_GROUP:
                    return False
                if error.args[0].code() != KafkaError.GROUP_ID_NOT_FOUND:
                    raise
        return True

    eventually(deleted, within_s=STEP_WITHIN_S, every_s=0.5, what="groups without offsets")
    for part in parts:
        if status[part]["pid"] is not None:  # Not where it was stopped for longer.
            start_soon(stack, part)


# --- a part and a command ---------------------------------------------------------------------------------------------


def _do(stack: Stack, action: str, part: str) -> None:
    _nigredo(stack, action, part)


def _nigredo(stack: Stack, *arguments: str) -> None:
    """Run a command that must not fail, unless the machine is busy: then once more."""
    give_up = time.monotonic() + STEP_WITHIN_S
    while (done := stack.nigredo(*arguments)).code != 0:
        if time.monotonic() > give_up:
            raise NigredoError(f"nigredo {' '.join(arguments)}: {done.err.strip()}")
        time.sleep(1.0)


LIVE, ALL = (Timing.RUNS_ON,), (Timing.RUNS_ON, Timing.LATE, Timing.RESTARTED)
DISASTERS = (
    Disaster("registry-emptied", empty_registry, timings=(Timing.RESTARTED, Timing.RUNS_ON, Timing.LATE)),
    Disaster("registry-a-strangers", begin_registry_with_a_stranger, timings=(Timing.RESTARTED, *ALL[:2])),
    Disaster("registry-put-back", put_registry_back, timings=(Timing.RESTARTED, *ALL[:2])),
    Disaster("state-lost", lose_state, timings=(Timing.RESTARTED, *ALL[:2])),
    Disaster("database-lost", lose_database, timings=ALL),
    Disaster("tables-emptied", empty_tables, timings=ALL),
    Disaster("leads-cut", cut_leads, timings=(Timing.LATE, Timing.RUNS_ON, Timing.RESTARTED)),
    Disaster("submissions-cut", cut_submissions, timings=(Timing.LATE, Timing.RUNS_ON, Timing.RESTARTED)),
    Disaster("kafka-put-back", put_snapshot_back, take_snapshot, timings=ALL),
    Disaster("kafka-lost-stopped", lose_kafka_stopped, timings=LIVE, loses_leads=True),
    Disaster("kafka-lost-live", lose_kafka_live, timings=ALL, loses_leads=True),
    Disaster("leads-made-again", made_again(LEADS), timings=ALL),
    Disaster("submissions-made-again", made_again(SUBMISSIONS), timings=ALL),
    Disaster("both-made-again", made_again(SUBMISSIONS, LEADS), timings=ALL),
    Disaster("windows-made-again", made_again(RATE_LIMITS), timings=ALL),
    Disaster("deliveries-made-again", made_again(DELIVERIES), timings=ALL),
    Disaster("control-made-again", made_again(CONTROL), timings=ALL),
    Disaster("offsets-deleted", delete_offsets, timings=ALL),
    Disaster("partitions-added", add_partitions, timings=ALL),
)
