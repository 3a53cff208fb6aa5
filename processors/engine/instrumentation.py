"""Processor metrics: processed batches and records, and the lag of each assigned partition."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from faust.types import TP

from nigredo.observability import metrics


def count_batch(topics: Sequence[str]) -> None:
    """Count the records of a batch whose results are durable, by the topic each came from."""
    metrics.BATCH.of().observe(len(topics))
    for topic, records in Counter(topics).items():
        metrics.RECORDS_HANDLED.of(topic).inc(records)


def report_lag(consumer: Any, following: Mapping[TP, int]) -> None:
    """Set the lag in records of each assigned partition, up to the end that Faust's last fetch saw.

    following: next offset by partition. Partitions no longer in it lose their series.
    """
    metrics.CONSUMER_LAG.keep([(tp.topic, str(tp.partition)) for tp in following])
    for tp, offset in following.items():
        end = consumer.highwater(tp)
        if end is not None:
            metrics.CONSUMER_LAG.of(tp.topic, str(tp.partition)).set(max(0, end - offset))
