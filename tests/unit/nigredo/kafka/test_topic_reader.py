"""Offset lookup by time, on a topic that is appended to meanwhile."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import pytest
from confluent_kafka import TopicPartition

from nigredo.kafka.kept_consumer import KeptConsumer
from nigredo.kafka.topic_reader import TopicReader
from nigredo.settings import Settings


class Growing:
    """A consumer of a partition of old records, to which a young record is appended after the first request."""

    def __init__(self) -> None:
        self._end = 5

    def offsets_for_times(self, asked: list[TopicPartition], timeout: float) -> list[TopicPartition]:
        self._end += 1
        return [TopicPartition(asked[0].topic, asked[0].partition, -1)]

    def get_watermark_offsets(self, *_: object, **__: object) -> tuple[int, int]:
        return 0, self._end


def test_a_record_that_is_appended_meanwhile_is_not_taken_for_an_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = TopicReader(Settings.from_environment({"NIGREDO_STATE_DIR": str(tmp_path)}), "test")

    monkeypatch.setattr(reader, "_query_client", KeptConsumer(cast("Any", Growing)))

    assert reader.offset_at("nigredo.rejections", 0, datetime.now(UTC)) == 5
