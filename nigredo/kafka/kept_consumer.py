"""Reusable consumer without a group: a new consumer would connect and log in for each call, 20 ms with SCRAM."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from confluent_kafka import Consumer, KafkaException

from nigredo.errors import DependencyDown
from nigredo.kafka.publisher import describe_error


class KeptConsumer:
    """Caches one consumer between calls. Thread-safe, because no two calls share a consumer at a time."""

    def __init__(self, make: Callable[[], Consumer], *, for_s: float = math.inf) -> None:
        """make: creates a consumer. for_s: age in seconds after which the cached consumer is replaced."""
        self._make = make
        self._for_s = for_s
        self._idle: deque[tuple[float, Consumer]] = deque(maxlen=1)

    @contextmanager
    def lend(self) -> Iterator[Consumer]:
        """Lend a consumer; after an error it is closed, because a fresh consumer finds the cluster soonest.

        Raises DependencyDown instead of a KafkaException.
        """
        created_at, consumer = self._acquire()
        try:
            yield consumer
        except KafkaException as error:
            consumer.close()
            raise DependencyDown(describe_error(error.args[0])) from error
        except BaseException:
            consumer.close()
            raise
        self._idle.append((created_at, consumer))

    def _acquire(self) -> tuple[float, Consumer]:
        with suppress(IndexError):
            created_at, consumer = self._idle.pop()
            if time.monotonic() - created_at < self._for_s:
                return created_at, consumer
            consumer.close()
        return time.monotonic(), self._make()
