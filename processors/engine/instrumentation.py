"""What a processor tells of its work, batch by batch, and of what is left to do."""

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


def tell_lag(consumer: Any, following: Mapping[TP, int]) -> None:
    """Tell how many records of each assigned partition are left, by what Faust's last fetch saw of its end.

    following: the offset of the next record to handle. What is not assigned any more is left out.
    """
    metrics.CONSUMER_LAG.keep([(tp.topic, str(tp.partition)) for tp in following])
    for tp, offset in following.items():
        end = consumer.highwater(tp)
        if end is not None:
            metrics.CONSUMER_LAG.of(tp.topic, str(tp.partition)).set(max(0, end - offset))
