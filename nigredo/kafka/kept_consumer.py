"""Consumers without a group, kept from call to call: each new one connects and logs in, with SCRAM in 20 ms."""

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
    """Keeps one consumer. May be used from several threads: no two calls share a consumer at a time."""

    def __init__(self, make: Callable[[], Consumer], *, for_s: float = math.inf) -> None:
        """make: returns a consumer. for_s: how long one is kept."""
        self._make = make
        self._for_s = for_s
        self._kept: deque[tuple[float, Consumer]] = deque(maxlen=1)

    @contextmanager
    def lend(self) -> Iterator[Consumer]:
        """Lend a consumer, and close it if the call fails: a fresh one finds the cluster soonest.

        Raises DependencyDown in the place of a KafkaException.
        """
        began, consumer = self._take()
        try:
            yield consumer
        except KafkaException as error:
            consumer.close()
            raise DependencyDown(describe_error(error.args[0])) from error
        except BaseException:
            consumer.close()
            raise
        self._kept.append((began, consumer))

    def _take(self) -> tuple[float, Consumer]:
        with suppress(IndexError):
            began, consumer = self._kept.pop()
            if time.monotonic() - began < self._for_s:
                return began, consumer
            consumer.close()
        return time.monotonic(), self._make()
