"""How delivery to one endpoint goes, seen from outside; blocking. What is well is decided here, and pure."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import httpx

from nigredo.clock import from_ms
from nigredo.endpoints.keys import from_key, sender_group
from nigredo.kafka.consumer_groups import unread
from nigredo.kafka.dead_letters import Origin
from nigredo.kafka.topic_reader import TopicReader
from nigredo.operations.recovery.plan import Stored, disagreement
from nigredo.operations.webhook_topics import WebhookTopics
from nigredo.plural import counted
from nigredo.settings import Settings
from schemas.events import DeliveryAttempt, WebhookRetry
from schemas.topics import DEAD_LETTERS, DELIVERIES, LEADS, SUBMISSIONS

COMPONENT = "webhook"
RECENTLY = timedelta(minutes=10)
FAILED_SHARE_MAX = 0.1
"""Together with `RECENTLY` the operations runbook's alarm: more than 10 % for 10 minutes."""
UNDELIVERED_MAX = timedelta(minutes=10)
LISTENER_TIMEOUT_S = 2.0
READ_DEADLINE_S = 10.0


@dataclass(frozen=True, slots=True)
class Oldest:
    """The lead that waits longest, and since when."""

    lead_id: UUID
    since: datetime


@dataclass(frozen=True, slots=True)
class Sender:
    """What the endpoint's process says of itself; `breaker` and `paused` are None when it did not answer."""

    ready: bool
    waiting_for: str | None
    breaker: str | None
    paused: bool | None = None


@dataclass(frozen=True, slots=True)
class EndpointHealth:
    """How it stands. Counts are of leads, but for the attempts."""

    enabled: bool
    sender: Sender
    lag: int
    """Offsets between what is settled and the end of the log: at least as many as leads."""
    oldest: Oldest | None
    attempts: int
    failed: int
    waiting: int
    """In retry topics."""
    replays: int
    dead: int
    parked: int
    """Dead letters of the endpoint's sender and of the limiter: leads that the receiver does not get because of it."""
    unread: Sequence[int] = ()
    """Partitions of the leads that no running sender reads, such as those that were added while it runs."""
    not_judged: str | None = None
    """Why submissions become no leads, although the limiter may run."""

    @property
    def failed_share(self) -> float:
        """Share of the recent attempts that failed; 0 without any."""
        return self.failed / self.attempts if self.attempts else 0.0

    def problems(self, now: datetime) -> list[str]:
        """Return what a person should see to; empty when all is well.

        Dead leads are none: they are in the list until somebody sends them again, which may rightly be never. Parked
        records are one until they are put back or discarded.
        """
        found = []
        if not self.enabled:
            found.append("paused")
        if not self.sender.ready:
            found.append(f"the sender waits for {self.sender.waiting_for}")
        if self.unread:
            names = ", ".join(map(str, self.unread))
            found.append(f"no sender reads {LEADS} partition {names}, see `nigredo recover --dry-run`")
        if self.not_judged is not None:
            found.append(f"submissions are not judged: {self.not_judged}")
        if self.sender.breaker not in (None, "closed"):
            found.append(f"the breaker is {self.sender.breaker}")
        if self.failed_share > FAILED_SHARE_MAX:
            found.append(f"{self.failed_share:.0%} of the attempts failed")
        if self.oldest is not None and now - self.oldest.since > UNDELIVERED_MAX:
            found.append(f"a lead waits since {self.oldest.since:%Y-%m-%d %H:%M:%S} UTC")
        if self.parked:
            found.append(f"{counted(self.parked, 'record is', 'records are')} parked, see `nigredo dead-letters list`")
        return found


def read_status(
    settings: Settings, endpoint: str, now: datetime, *, enabled: bool, listener: str | None
) -> EndpointHealth:
    """Return how delivery to an endpoint goes.

    enabled: whether it is, by settings and switches; a sender that is ready knows better.
    listener: address of the sender's health listener, where that is known. Raises ConfigurationError for an endpoint
    that was never begun, DependencyDown.
    """
    reader = TopicReader(settings, COMPONENT)
    topics = WebhookTopics(settings, reader)
    lag, waiting, oldest = 0, 0, []
    live = topics.live_offsets(endpoint)
    for partition, settled in live.items():
        _, end = reader.watermarks(LEADS, partition)
        lag += max(0, end - settled)
        for message in reader.between(LEADS, partition, settled, end):
            if message.value() is not None and (known := from_key(message.key())) is not None:
                oldest.append(Oldest(known[0], from_ms(max(0, message.timestamp()[1]))))
                break
    for topic in topics.retry_topics(endpoint):
        for _, value in topics.standing(topic):
            waiting += 1
            retry = topics.decode(topic, value)
            if isinstance(retry, WebhookRetry):
                oldest.append(Oldest(retry.lead_id, retry.first_attempt_at))
    sender = ask_sender(listener, endpoint)
    outcomes = list(_outcomes(reader, topics, endpoint, now - RECENTLY))
    return EndpointHealth(
        enabled=enabled if sender.paused is None or not sender.ready else not sender.paused,
        sender=sender,
        lag=lag,
        oldest=min(oldest, key=lambda each: each.since, default=None),
        attempts=len(outcomes),
        failed=sum(outcome != "delivered" for outcome in outcomes),
        waiting=waiting,
        replays=len(topics.replays(endpoint)),
        dead=sum(dead.endpoint == endpoint for dead in topics.dead()),
        parked=_parked(settings, topics, endpoint),
        unread=unread(settings, sender_group(settings, endpoint), LEADS, live),
        not_judged=_not_judged(settings, reader),
    )


def _not_judged(settings: Settings, reader: TopicReader) -> str | None:
    """Return why the limiter does not go on in some partition, as its positions and the log tell."""
    group = settings.function("rate-limiter")
    for number, position in reader.positions(group, SUBMISSIONS, reader.partitions(SUBMISSIONS)).items():
        asks_at = 0 if position is None else position.asks_at
        now = reader.now(SUBMISSIONS, number, asks_at, deadline_s=READ_DEADLINE_S)
        found = disagreement(Stored(group, SUBMISSIONS, number, position, now))
        if found is not None and (position is not None or now.end > now.start):
            return found.reason
    return None


def _parked(settings: Settings, topics: WebhookTopics, endpoint: str) -> int:
    functions = (sender_group(settings, endpoint), settings.function("rate-limiter"))
    origins = (Origin.of(key) for key, _ in topics.standing(DEAD_LETTERS))
    return sum(origin is not None and origin.function in functions for origin in origins)


def _outcomes(reader: TopicReader, topics: WebhookTopics, endpoint: str, since: datetime) -> Iterator[str]:
    for partition in reader.partitions(DELIVERIES):
        start = reader.offset_at(DELIVERIES, partition, since)
        _, end = reader.watermarks(DELIVERIES, partition)
        for message in reader.between(DELIVERIES, partition, start, end):
            attempt = topics.decode(DELIVERIES, message.value())
            if isinstance(attempt, DeliveryAttempt) and attempt.endpoint == endpoint:
                yield attempt.outcome


def ask_sender(listener: str | None, endpoint: str) -> Sender:
    """Ask the health listener of an endpoint's sender; never raises."""
    unknown = Sender(True, None, None)  # That is not wrong: it may listen where only its orchestrator asks.
    if listener is None:
        return unknown
    try:
        answer: Any = httpx.get(f"{listener}/health", timeout=LISTENER_TIMEOUT_S, trust_env=False).json()
    except (httpx.HTTPError, json.JSONDecodeError):
        return Sender(False, "its start: nothing answers for it", None)
    if not isinstance(answer, dict) or answer.get("endpoint") != endpoint:
        return unknown  # Another's listener: the endpoints' file was changed since, or both have the same settings.
    waiting_for, paused = answer.get("waiting_for"), answer.get("paused")
    return Sender(waiting_for is None, waiting_for, answer.get("breaker"), paused if isinstance(paused, bool) else None)
