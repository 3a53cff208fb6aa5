"""A topic held in memory: loaded again when it is another topic, or another log, than the one that was read."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from contextlib import closing

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewPartitions, NewTopic

from nigredo.kafka import materialized_view as view_module
from nigredo.kafka.materialized_view import MaterializedView, Row
from nigredo.kafka.positions.log_proof import Comparison
from nigredo.log_position import LogNow, Mark
from nigredo.testing import Stack, eventually


class Rows:
    """Keeps the newest value of each key, and counts the loadings."""

    def __init__(self) -> None:
        self.loads = 0
        self.now: dict[bytes | None, bytes | None] = {}
        self._coming: dict[bytes | None, bytes | None] = {}

    def begin(self) -> None:
        self._coming = {}

    def apply(self, rows: Sequence[Row]) -> None:
        self._coming.update({row.key: row.value for row in rows})

    def loaded(self) -> None:
        self.now = self._coming
        self.loads += 1


@pytest.fixture
def topic(stack: Stack) -> Iterator[str]:
    name = f"test.view-{uuid.uuid4().hex[:8]}"
    create(stack, name)
    yield name
    delete(stack, name)


def create(stack: Stack, name: str) -> None:
    admin = AdminClient(stack.client_config())

    def created() -> bool:
        # While the broker deletes the topic of the same name it answers that there is one.
        created = admin.create_topics([NewTopic(name, num_partitions=1, replication_factor=1)])[name]
        return created.exception(30) is None

    eventually(created, within_s=60, every_s=0.2, what="a new topic")
    eventually(lambda: name in admin.list_topics(timeout=10).topics, within_s=60, what="the new topic's name")


def delete(stack: Stack, name: str) -> None:
    admin = AdminClient(stack.client_config())
    admin.delete_topics([name])[name].result(30)


def put(stack: Stack, topic: str, *keys: str) -> None:
    producer = Producer(stack.client_config())
    for key in keys:
        producer.produce(topic, key=key, value=b"x")
    assert producer.flush(60) == 0


def test_a_topic_that_was_made_again_is_loaded_again_although_it_is_longer_than_before(
    stack: Stack, topic: str
) -> None:
    rows = Rows()
    put(stack, topic, "old")
    view = MaterializedView(stack.settings(role="admin"), "test", topic, rows)
    view.open()
    with closing(view):
        eventually(lambda: rows.now == {b"old": b"x"}, within_s=60, what="the first records")

        delete(stack, topic)
        create(stack, topic)
        put(stack, topic, "a", "b", "c")

        eventually(lambda: rows.now == {b"a": b"x", b"b": b"x", b"c": b"x"}, within_s=60, what="the other topic")


def test_partitions_that_were_added_are_read(stack: Stack, topic: str) -> None:
    rows = Rows()
    view = MaterializedView(stack.settings(role="admin"), "test", topic, rows)
    view.open()
    with closing(view):
        eventually(lambda: rows.loads, within_s=60, what="the empty topic")

        admin = AdminClient(stack.client_config())
        admin.create_partitions([NewPartitions(topic, 3)])[topic].result(30)

        def found() -> bool:
            put(stack, topic, *map(str, range(30)))
            return len(rows.now) == 30

        eventually(found, within_s=60, every_s=0.5, what="records of every partition")


def test_a_log_that_holds_another_record_where_one_was_read_is_loaded_again_without_an_error_of_the_client(
    stack: Stack, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, other = Rows(), Mark.of(1, 1, b"another")
    put(stack, topic, "one", "two")
    view = MaterializedView(stack.settings(role="admin"), "test", topic, rows)
    view.open()
    with closing(view):
        eventually(lambda: rows.loads == 1, within_s=60, what="the records")

        topic_id = view._topic_id()
        monkeypatch.setattr(view._proof, "_read", lambda asked: {
            place: dict.fromkeys(offsets, LogNow(topic_id, 0, 2, other)) for place, offsets in asked.items()
        })  # fmt: skip
        monkeypatch.setattr(view._proof, "_confirmed", lambda *_: False)

        eventually(lambda: rows.loads > 1, within_s=60, what="a second load")


def test_a_topic_of_which_no_record_arrives_any_more_is_loaded_again_by_a_new_client(
    stack: Stack, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = Rows()
    put(stack, topic, "one", "two")
    monkeypatch.setattr(view_module, "COMPARED_EVERY_S", 0.1)
    view = MaterializedView(stack.settings(role="admin"), "test", topic, rows)
    monkeypatch.setattr(view._proof, "compare", lambda kept: Comparison({}, dict.fromkeys(kept, 3)))
    view.open()
    with closing(view):
        eventually(lambda: rows.loads > 1, within_s=60, what="a second load")
