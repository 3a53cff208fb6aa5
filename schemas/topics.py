"""Topics of the product: names, retention and compaction, and the schemas of their values.

Partitions and replication are settings of an installation; retention is part of the contract with readers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS


@dataclass(frozen=True, slots=True)
class TopicSpec:
    """Specification of a topic. `schema` is the name of the `.avsc` file without version."""

    name: str
    schema: str
    config: Mapping[str, str] = field(default_factory=dict)
    partitions: int | None = None
    """Fixed number of partitions; None for TOPIC_PARTITIONS. One partition keeps the order of all records."""

    @property
    def subject(self) -> str:
        """Subject of the values in the schema registry."""
        return f"{self.name}-value"


def _deleted_after(days: int, **config: str) -> dict[str, str]:
    return {"cleanup.policy": "delete", "retention.ms": str(days * DAY_MS)} | _dotted(config)


def _compacted(**config: str) -> dict[str, str]:
    # On a quiet topic too, a tombstone or newer value removes the older value from disk within a day.
    return {
        "cleanup.policy": "compact",
        "segment.ms": str(6 * HOUR_MS),
        "max.compaction.lag.ms": str(DAY_MS),
        "min.cleanable.dirty.ratio": "0.1",
    } | _dotted(config)


def _compacted_and_deleted_after(ms: int, **config: str) -> dict[str, str]:
    bounds = {
        "cleanup.policy": "compact,delete",
        "retention.ms": str(ms),
        # A segment is deleted once its newest record has expired, and compaction merges older segments with newer ones
        # up to this size (docs/adr/0022): so many bytes of a partition may stay on disk expired and unread.
        "segment.bytes": str(16 * 2**20),
    }
    return _compacted() | bounds | _dotted(config)


def _dotted(config: Mapping[str, str]) -> dict[str, str]:
    return {name.replace("_", "."): value for name, value in config.items()}


SUBMISSIONS = "nigredo.submissions"
LEADS = "nigredo.leads"
REJECTIONS = "nigredo.rejections"
RATE_LIMITS = "nigredo.rate-limits"
DELIVERIES = "nigredo.deliveries"
WEBHOOK_DEAD = "nigredo.webhook-dead"
WEBHOOK_REPLAYS = "nigredo.webhook-replays"
DEAD_LETTERS = "nigredo.dead-letters"
CONTROL = "nigredo.control"
AUDIT = "nigredo.audit"

TOPICS: Mapping[str, TopicSpec] = {
    spec.name: spec
    for spec in (
        TopicSpec(
            SUBMISSIONS,
            "submissions",
            # The broker's append time is the clock of the rate limit, so that a node's wrong clock has no effect.
            _deleted_after(7, message_timestamp_type="LogAppendTime", segment_ms=str(6 * HOUR_MS)),
        ),
        # Same retention as the rejections, so that a persister that was down for less misses no tombstone.
        TopicSpec(LEADS, "leads", _compacted(delete_retention_ms=str(30 * DAY_MS))),
        TopicSpec(REJECTIONS, "rejections", _compacted_and_deleted_after(30 * DAY_MS)),
        TopicSpec(
            RATE_LIMITS,
            "rate-limits",
            # Longest wait of a submission for its verdict plus the longest window: docs/adr/0009.
            _compacted_and_deleted_after(
                9 * DAY_MS, min_compaction_lag_ms=str(DAY_MS), max_compaction_lag_ms=str(2 * DAY_MS)
            ),
        ),
        TopicSpec(DELIVERIES, "deliveries", _deleted_after(365)),
        TopicSpec(WEBHOOK_DEAD, "webhook-dead", _compacted_and_deleted_after(90 * DAY_MS)),
        TopicSpec(WEBHOOK_REPLAYS, "webhook-replays", _compacted()),
        TopicSpec(DEAD_LETTERS, "dead-letters", _compacted_and_deleted_after(90 * DAY_MS)),
        TopicSpec(CONTROL, "control", _compacted()),
        TopicSpec(AUDIT, "audit", _deleted_after(365)),
    )
}

STORED = (LEADS, REJECTIONS, RATE_LIMITS, DELIVERIES)
"""Topics that the persister stores in PostgreSQL."""

SCHEMAS = "nigredo.schemas"
SCHEMA_PINS: Mapping[str, TopicSpec] = {SCHEMAS: TopicSpec(SCHEMAS, "", _compacted(), partitions=1)}
"""Pinned schemas by the ids in the log (`nigredo/avro/pins.py`): key the id, value JSON, never deleted."""

RETRIES_PREFIX = "nigredo.webhook-retries."
RETRY_DELAYS_S: Mapping[str, float] = {"1m": 60.0, "10m": 600.0, "1h": 3600.0, "6h": 21_600.0}
"""Delays of the retry topics, one per order of magnitude, so that attempts due in hours do not block earlier ones."""


def retry_topic(endpoint: str, delay: str) -> str:
    """Return the topic of an endpoint's scheduled retries of about this delay, a key of `RETRY_DELAYS_S`."""
    return f"{RETRIES_PREFIX}{endpoint}.{delay}"


def retry_topics(endpoint: str) -> Mapping[str, TopicSpec]:
    """Return the retry topics of one endpoint, by name; they are created together with the endpoint."""
    names = [retry_topic(endpoint, delay) for delay in RETRY_DELAYS_S]
    return {name: TopicSpec(name, "webhook-retries", _compacted()) for name in names}


def spec_of(topic: str) -> TopicSpec:
    """Return the specification of a topic, retry topics included. Raises KeyError for an unknown topic."""
    if topic.startswith(RETRIES_PREFIX):
        return retry_topics(topic.removeprefix(RETRIES_PREFIX).rpartition(".")[0])[topic]
    return TOPICS[topic]


NEWEST_VERSION: Mapping[str, int] = {
    "submissions": 3,
    "leads": 1,
    "rejections": 2,
    "rate-limits": 2,
    "deliveries": 2,
    "webhook-retries": 2,
    "webhook-dead": 1,
    "webhook-replays": 1,
    "dead-letters": 1,
    "control": 1,
    "audit": 1,
}
"""Version of each schema that this release writes; older files stay because the log still has older records."""


def load_schema(name: str, version: int | None = None) -> Any:
    """Return a schema file as parsed JSON; by default the version that this release writes."""
    file = resources.files("schemas") / f"{name}.v{version or NEWEST_VERSION[name]}.avsc"
    return json.loads(file.read_text(encoding="utf-8"))
