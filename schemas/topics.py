"""Every topic of the product: its name, how long it keeps what, and which schema its values have.

Partitions and replication are settings of the installation; retention is part of the contract with readers.
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
    """One topic. `schema` names its `.avsc` file, without the version; the registry's subject is `{name}-value`."""

    name: str
    schema: str
    config: Mapping[str, str] = field(default_factory=dict)
    partitions: int | None = None
    """As many as the installation has for every topic, unless the topic's own order needs one."""

    @property
    def subject(self) -> str:
        """The registry's subject for the values."""
        return f"{self.name}-value"


def _deleted_after(days: int, **config: str) -> dict[str, str]:
    return {"cleanup.policy": "delete", "retention.ms": str(days * DAY_MS)} | _dotted(config)


def _compacted(**config: str) -> dict[str, str]:
    # A tombstone or a newer value takes effect on disk within a day, also on a quiet topic.
    return {
        "cleanup.policy": "compact",
        "segment.ms": str(6 * HOUR_MS),
        "max.compaction.lag.ms": str(DAY_MS),
        "min.cleanable.dirty.ratio": "0.1",
    } | _dotted(config)


def _compacted_and_deleted_after(ms: int, **config: str) -> dict[str, str]:
    kept = {
        "cleanup.policy": "compact,delete",
        "retention.ms": str(ms),
        # A segment goes once its newest record is that old, and compaction merges old ones with new ones up to this
        # size (docs/adr/0022): so much of a partition may stay on disk past its time, read by nobody.
        "segment.bytes": str(16 * 2**20),
    }
    return _compacted() | kept | _dotted(config)


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
            # The broker's append time is the clock of the rate limit: no ingest node's clock can bend it.
            _deleted_after(7, message_timestamp_type="LogAppendTime", segment_ms=str(6 * HOUR_MS)),
        ),
        # As long as the rejections, so that a persister that was away for less has missed nothing, no erasure either.
        TopicSpec(LEADS, "leads", _compacted(delete_retention_ms=str(30 * DAY_MS))),
        TopicSpec(REJECTIONS, "rejections", _compacted_and_deleted_after(30 * DAY_MS)),
        TopicSpec(
            RATE_LIMITS,
            "rate-limits",
            # As long as a submission may wait to be judged, and the longest window more: docs/adr/0009.
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
"""Topics that the persister reads into PostgreSQL."""

SCHEMAS = "nigredo.schemas"
SCHEMA_PINS: Mapping[str, TopicSpec] = {SCHEMAS: TopicSpec(SCHEMAS, "", _compacted(), partitions=1)}
"""Which schema each id in the log means (`nigredo/avro/pins.py`): JSON under the id, never deleted."""

RETRIES_PREFIX = "nigredo.webhook-retries."
RETRY_DELAYS_S: Mapping[str, float] = {"1m": 60.0, "10m": 600.0, "1h": 3600.0, "6h": 21_600.0}
"""Later attempts wait in a topic for each order of magnitude, so that one which waits for hours is in nobody's way."""


def retry_topic(endpoint: str, delay: str) -> str:
    """Return where the later attempts of one endpoint wait, about as long as `delay` says."""
    return f"{RETRIES_PREFIX}{endpoint}.{delay}"


def retry_topics(endpoint: str) -> Mapping[str, TopicSpec]:
    """Return the retry topics of one endpoint by name; made when it is set up."""
    names = [retry_topic(endpoint, delay) for delay in RETRY_DELAYS_S]
    return {name: TopicSpec(name, "webhook-retries", _compacted()) for name in names}


def spec_of(topic: str) -> TopicSpec:
    """Return what describes a topic, an endpoint's own ones too. Raises KeyError for one that is none of ours."""
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
"""The version of each schema that this release writes; older files stay, since older records do."""


def load_schema(name: str, version: int | None = None) -> Any:
    """Return one schema file as parsed JSON; the newest version unless told."""
    file = resources.files("schemas") / f"{name}.v{version or NEWEST_VERSION[name]}.avsc"
    return json.loads(file.read_text(encoding="utf-8"))
