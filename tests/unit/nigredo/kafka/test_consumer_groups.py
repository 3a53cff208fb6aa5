"""Partitions without a reader: not assigned to any member although the group is stable."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import ConsumerGroupState, TopicPartition

from nigredo.kafka import consumer_groups as groups
from nigredo.kafka.consumer_groups import unread
from nigredo.settings import Settings
from schemas.topics import LEADS, WEBHOOK_REPLAYS

MEMBERS = [
    SimpleNamespace(assignment=SimpleNamespace(topic_partitions=[TopicPartition(LEADS, 0), TopicPartition(LEADS, 3)])),
    SimpleNamespace(assignment=SimpleNamespace(topic_partitions=[TopicPartition(WEBHOOK_REPLAYS, 1)])),
    SimpleNamespace(assignment=None),
]


def found(monkeypatch: pytest.MonkeyPatch, state: ConsumerGroupState, members: list[Any]) -> list[int]:
    monkeypatch.setattr(groups, "_described", lambda *_: SimpleNamespace(state=state, members=members))
    return unread(Settings.from_environment({}), "group", LEADS, [0, 1, 2, 3])


def test_partitions_that_no_member_has_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert found(monkeypatch, ConsumerGroupState.STABLE, MEMBERS) == [1, 2]


@pytest.mark.parametrize("state", [ConsumerGroupState.EMPTY, ConsumerGroupState.PREPARING_REBALANCING])
def test_a_group_without_an_assignment_lacks_none(monkeypatch: pytest.MonkeyPatch, state: ConsumerGroupState) -> None:
    assert found(monkeypatch, state, []) == []
