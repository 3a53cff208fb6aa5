"""Delivery status of one endpoint: reads it from outside (blocking) and decides which problems need an operator."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import httpx

from nigredo.clock import from_ms
from nigredo.components import RATE_LIMITER
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
"""With `RECENTLY`, the alarm of the operations runbook: more than 10 % failed for 10 minutes."""
UNDELIVERED_MAX = timedelta(minutes=10)
LISTENER_TIMEOUT_S = 2.0
READ_DEADLINE_S = 10.0


@dataclass(frozen=True, slots=True)
class Oldest:
    """The lead that has been waiting longest, and the time since when."""

    lead_id: UUID
    since: datetime


@dataclass(frozen=True, slots=True)
class Sender:
    """State that the endpoint's sender process reports; `breaker` and `paused` are None without an answer."""

    ready: bool
    waiting_for: str | None
    breaker: str | None
    paused: bool | None = None


@dataclass(frozen=True, slots=True)
class EndpointHealth:
    """Delivery status of an endpoint. All counts are of leads, except for `attempts` and `failed`."""

    enabled: bool
    sender: Sender
    lag: int
    """Offsets between the committed one and the end of the log: an upper bound of the leads in between."""
    oldest: Oldest | None
    attempts: int
    failed: int
    waiting: int
    """Leads with a scheduled retry."""
    replays: int
    dead: int
    parked: int
    """Dead letters of the endpoint's sender and of the limiter: leads that the receiver lacks because of them."""
    unread: Sequence[int] = ()
    """Partitions of the leads that no running sender reads, such as partitions added since the sender joined."""
    not_judged: str | None = None
    """Reason why the limiter does not judge submissions of some partition; None when it judges all."""

    @property
    def failed_share(self) -> float:
        """Share of the recent attempts that failed, 0 to 1; 0 without attempts."""
        return self.failed / self.attempts if self.attempts else 0.0

    def problems(self, now: datetime) -> list[str]:
        """Return the problems that need an operator; empty when there is none.

        Dead leads are no problem, because an operator may rightly never replay them. Parked records are a problem
        until they are retried or discarded.
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
            found.append(f"a lead has been waiting since {self.oldest.since:%Y-%m-%d %H:%M:%S} UTC")
        if self.parked:
            found.append(f"{counted(self.parked, 'record is', 'records are')} parked, see `nigredo dead-letters list`")
        return found


def read_status(
    settings: Settings, endpoint: str, now: datetime, *, enabled: bool, listener: str | None
) -> EndpointHealth:
    """Return the delivery status of an endpoint.

    enabled: by settings and switches; the answer of a ready sender overrides it. listener: URL of the sender's health
    listener, None when unknown. Raises DependencyDown, and ConfigurationError for an endpoint that never began.
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
    """Return why the limiter has stopped in some partition, by its positions and the log; None when all agree."""
    group = settings.function(RATE_LIMITER)
    for number, position in reader.positions(group, SUBMISSIONS, reader.partitions(SUBMISSIONS)).items():
        asks_at = 0 if position is None else position.asks_at
        now = reader.now(SUBMISSIONS, number, asks_at, deadline_s=READ_DEADLINE_S)
        found = disagreement(Stored(group, SUBMISSIONS, number, position, now))
        if found is not None and (position is not None or now.end > now.start):
            return found.reason
    return None


def _parked(settings: Settings, topics: WebhookTopics, endpoint: str) -> int:
    functions = (sender_group(settings, endpoint), settings.function(RATE_LIMITER))
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
    """Return the state that the health listener of an endpoint's sender reports; never raises.

    listener: URL, None when unknown. Without a listener of this endpoint the sender counts as ready.
    """
    unknown = Sender(True, None, None)  # No problem: the listener may be reachable for the orchestrator only.
    if listener is None:
        return unknown
    try:
        answer: Any = httpx.get(f"{listener}/health", timeout=LISTENER_TIMEOUT_S, trust_env=False).json()
    except (httpx.HTTPError, json.JSONDecodeError):
        return Sender(False, "its start: its health listener does not answer", None)
    if not isinstance(answer, dict) or answer.get("endpoint") != endpoint:
        return unknown  # Another sender's listener: the endpoints' file has changed, or both have the same settings.
    waiting_for, paused = answer.get("waiting_for"), answer.get("paused")
    return Sender(waiting_for is None, waiting_for, answer.get("breaker"), paused if isinstance(paused, bool) else None)
