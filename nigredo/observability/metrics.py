"""Catalogue of all metrics: the meaning and unit of each metric, and the operator's question that it answers.

A process calls `start` once, and from then on exposes its own metrics and their children with known labels, all at 0,
so that the first error shows as an increase. Usage: `metrics.WEBHOOK_SUCCESS.of(endpoint).inc()`. Label sets are
closed: an undeclared value counts as `other`, so that no data of a client (a path, an address, an id) becomes a label.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import prometheus_client as prometheus
from prometheus_client import generate_latest

from nigredo.components import INGEST, PERSISTER, RATE_LIMITER, WEBHOOK_SENDER
from nigredo.observability import labels as known
from nigredo.observability.instrument import OTHER, REGISTRY, Histogram, Metric
from nigredo.settings import Settings
from schemas.topics import DELIVERIES, LEADS, RATE_LIMITS, REJECTIONS, SUBMISSIONS, TOPICS

# --- ingest -----------------------------------------------------------------------------------------------------------

API_REQUESTS = Metric(
    prometheus.Counter,
    "nigredo_api_requests_total",
    "HTTP requests answered, health probes left out",
    unit="requests",
    answers="How busy is the API, and how does it answer? Share of 5xx: is it failing?",
    processes=[INGEST],
    labels={
        "function": known.functions(known.CREATE, known.LIST, known.GET),
        "route": tuple(known.ROUTES),
        "method": known.METHODS,
        "status": known.STATUSES,
    },
    first=known.first_requests,
)
API_ERRORS = Metric(
    prometheus.Counter,
    "nigredo_api_errors_total",
    "HTTP requests answered with 5xx, but for the 503 of maintenance",
    unit="requests",
    answers="Which route fails?",
    processes=[INGEST],
    labels={"route": tuple(known.ROUTES), "status": known.SERVER_ERRORS},
)
API_LATENCY = Metric(
    Histogram,
    "nigredo_api_latency_seconds",
    "Time from a request's headers to its answer, health probes left out",
    unit="seconds",
    answers="How long do people wait? Edges at 0.1, 0.5 and 1 s, which targets and alarms ask about.",
    processes=[INGEST],
    labels={"route": tuple(known.ROUTES), "method": known.METHODS},
    first=known.first_latencies,
    buckets=known.LATENCY_S,
)
LEAD_SUBMISSIONS = Metric(
    prometheus.Counter,
    "nigredo_lead_submissions_total",
    "Forms that could be read, by where they came from and what became of them at ingest",
    unit="forms",
    answers="How many leads come in, from where? Sources are those in METRIC_SOURCES; the full list is in PostgreSQL. "
    "Outcomes are accepted, repeated, duplicate, spam, rate_limited, and failed, which got a 5xx; a "
    "client's mistakes are left out.",
    processes=[INGEST],
    labels={
        "source": lambda settings: (*settings.metric_sources, known.NONE, OTHER),
        "outcome": ("accepted", "repeated", "duplicate", "spam", "rate_limited", "failed"),
    },
)
RATE_LIMIT_HITS = Metric(
    prometheus.Counter,
    "nigredo_rate_limit_hits_total",
    "Submissions refused by the limit: those that got a 429, and those that only the limiter refused",
    unit="submissions",
    answers="Does somebody run into the limit?",
    processes=[INGEST, RATE_LIMITER],
)
UNTRUSTED_FORWARDING = Metric(
    prometheus.Counter,
    "nigredo_untrusted_forwarding_total",
    "Requests with X-Forwarded-For or Forwarded, which count for nothing: the peer is not in TRUSTED_PROXIES",
    unit="requests",
    answers="Is a proxy missing in TRUSTED_PROXIES, so that all its clients share one limit? A few are clients' own.",
    processes=[INGEST],
)
IP_BLOCK_REJECTIONS = Metric(
    prometheus.Counter,
    "nigredo_ip_block_rejections_total",
    "Requests from blocked networks, refused with 403",
    unit="requests",
    answers="Does a block take effect?",
    processes=[INGEST],
)
AUTH_FAILURES = Metric(
    prometheus.Counter,
    "nigredo_auth_failures_total",
    "Requests refused with 401: without an API key, or with one that is not known",
    unit="requests",
    answers="Does somebody try keys?",
    processes=[INGEST],
)
INGEST_IN_FLIGHT = Metric(
    prometheus.Gauge,
    "nigredo_ingest_in_flight",
    "Records that wait for Kafka's acknowledgement, told once a second",
    unit="records",
    answers="Is Kafka slow? How near is the bound (INGEST_IN_FLIGHT_MAX a worker)?",
    processes=[INGEST],
)
EDGE_NETWORKS = Metric(
    prometheus.Gauge,
    "nigredo_edge_networks",
    "Client networks that ingest remembers for its 429, all workers together, told once a second",
    unit="networks",
    answers="Is the memory of the edge near its bound (EDGE_NETWORKS_MAX a worker)?",
    processes=[INGEST],
)
SPOOL_RECORDS = Metric(
    prometheus.Gauge,
    "nigredo_spool_records",
    "Submissions in the spool, which Kafka does not have yet",
    unit="records",
    answers="How many leads wait on this machine's disk alone?",
    processes=[INGEST],
)
SPOOL_BYTES = Metric(
    prometheus.Gauge,
    "nigredo_spool_bytes",
    "Size of the spool on disk",
    unit="bytes",
    answers="How near is the spool to its bound?",
    processes=[INGEST],
)
SPOOL_REFUSED = Metric(
    prometheus.Gauge,
    "nigredo_spool_refused",
    "Submissions in the spool that Kafka can never take; deleted after 30 days",
    unit="records",
    answers="Is there something that a person should look at before it goes?",
    processes=[INGEST],
)
SPOOL_OLDEST_AGE = Metric(
    prometheus.Gauge,
    "nigredo_spool_oldest_age_seconds",
    "Age of the oldest submission in the spool; 0 when it is empty",
    unit="seconds",
    answers="Since when does Kafka not take what came in?",
    processes=[INGEST],
    across_workers="livemax",
)

# --- every process ------------------------------------------------------------------------------------------------

LOG_LINES_DROPPED = Metric(
    prometheus.Counter,
    "nigredo_log_lines_dropped_total",
    "Log lines that could not be written: the reader of the pipe is gone or stands still, or the disk is full",
    unit="lines",
    answers="Is the log complete? Work goes on without it.",
    processes=[INGEST, RATE_LIMITER, PERSISTER, WEBHOOK_SENDER],
)

# --- processors -------------------------------------------------------------------------------------------------------

DB_CONNECTION_ERRORS = Metric(
    prometheus.Counter,
    "nigredo_db_connection_errors_total",
    "Attempts to connect to PostgreSQL that failed, connections that broke, waits for a free one that were in vain",
    unit="errors",
    answers="Is the database away, or the pool too small?",
    processes=[INGEST, PERSISTER],
    labels={"function": known.functions(*known.POOLS.values())},
    first=known.first_db_errors,
)
VERDICTS = Metric(
    prometheus.Counter,
    "nigredo_verdicts_total",
    "Submissions judged; after a crash some are judged, and counted, again",
    unit="submissions",
    answers="What becomes of submissions?",
    processes=[RATE_LIMITER],
    labels={"outcome": ("accepted", "repeated", "rate_limited", "spam", "duplicate")},
)
LIMITER_NETWORKS = Metric(
    prometheus.Gauge,
    "nigredo_limiter_networks",
    "Client networks whose windows the limiter holds in memory",
    unit="networks",
    answers="Is the limiter's memory bounded by the traffic of a window, as it should be?",
    processes=[RATE_LIMITER],
)
LIMIT_RESETS = Metric(
    prometheus.Counter,
    "nigredo_limit_resets_total",
    "Orders of an operator to free a network that the limiter carried out",
    unit="resets",
    answers="Did freeing a network reach the limiter?",
    processes=[RATE_LIMITER],
)
RECORDS_HANDLED = Metric(
    prometheus.Counter,
    "nigredo_records_handled_total",
    "Records whose results are durable; after a crash some are handled, and counted, again",
    unit="records",
    answers="Does a processor work, and how fast?",
    processes=[RATE_LIMITER, PERSISTER, WEBHOOK_SENDER],
    labels={"topic": tuple(TOPICS)},
    first=known.first_of(
        rate_limiter=(SUBMISSIONS,), persister=(LEADS, REJECTIONS, RATE_LIMITS, DELIVERIES), webhook_sender=(LEADS,)
    ),
)
PARKING_REASONS = ("undecodable", "unsupported", "too_large", "invalid", "refused_by_database", "failed", OTHER)
RECORDS_PARKED = Metric(
    prometheus.Counter,
    "nigredo_records_parked_total",
    "Records that could never be handled, put among the dead letters",
    unit="records",
    answers="Are there dead letters to look at, and of which kind?",
    processes=[RATE_LIMITER, PERSISTER, WEBHOOK_SENDER],
    labels={"reason": PARKING_REASONS},
)
DEAD_LETTERS_WAITING = Metric(
    prometheus.Gauge,
    "nigredo_dead_letters_waiting",
    "Parked records that were neither put back nor discarded, by the topic they came from; each persister tells all",
    unit="records",
    answers="Does a lead wait for an operator? `nigredo dead-letters list` shows them.",
    processes=[PERSISTER],
    labels={"topic": tuple(TOPICS), "reason": PARKING_REASONS},
    first=lambda _, __: [(topic, reason) for topic in (SUBMISSIONS, LEADS) for reason in PARKING_REASONS],
)
DEAD_LETTERS_STOPPED = Metric(
    prometheus.Gauge,
    "nigredo_dead_letters_stopped",
    "1 while a topic waits, since too many of its records in a row, or too large a share, were parked; else 0",
    unit="0 or 1",
    answers="Is something broken that makes records unusable? `nigredo status` says which reason they had.",
    processes=[RATE_LIMITER, PERSISTER, WEBHOOK_SENDER],
    labels={"topic": tuple(TOPICS)},
    first=known.first_of(
        rate_limiter=(SUBMISSIONS,), persister=(LEADS, REJECTIONS, RATE_LIMITS, DELIVERIES), webhook_sender=(LEADS,)
    ),
)
BATCH = Metric(
    Histogram,
    "nigredo_batch_records",
    "Records handled at once, between two commits to Kafka or PostgreSQL",
    unit="records",
    answers="Does a processor work in batches, or is it starved?",
    processes=[RATE_LIMITER, PERSISTER],
    buckets=known.BATCH_RECORDS,
)
CONSUMER_LAG = Metric(
    prometheus.Gauge,
    "nigredo_consumer_lag_records",
    "Records of an assigned partition that are not handled yet",
    unit="records",
    answers="Does a process keep up?",
    processes=[RATE_LIMITER, PERSISTER, WEBHOOK_SENDER],
    labels={"topic": tuple(TOPICS), "partition": tuple(map(str, range(known.PARTITIONS_MAX)))},
    first=known.first_of(),
)
PARTITIONS_STOPPED = Metric(
    prometheus.Gauge,
    "nigredo_partitions_stopped",
    "Assigned partitions that are not consumed, since the log does not bear out the position stored for them",
    unit="partitions",
    answers="Was the log set back, or a topic made again? Above 0, records wait for an operator; `nigredo status` says "
    "which and why.",
    processes=[RATE_LIMITER, PERSISTER],
    labels={"topic": tuple(TOPICS)},
    first=known.first_of(rate_limiter=(SUBMISSIONS,), persister=(LEADS, REJECTIONS, RATE_LIMITS, DELIVERIES)),
)
PARTITIONS_UNASSIGNED = Metric(
    prometheus.Gauge,
    "nigredo_partitions_unassigned",
    "Partitions that no member of the process's consumer group has, told by each member",
    unit="partitions",
    answers="Does a topic wait for nobody? Above 0 for longer than a rebalance, records of it are not consumed.",
    processes=[RATE_LIMITER, PERSISTER],
    labels={"topic": tuple(TOPICS)},
    first=known.first_of(rate_limiter=(SUBMISSIONS,), persister=(LEADS, REJECTIONS, RATE_LIMITS, DELIVERIES)),
)
WATCHDOG_RESTARTS = Metric(
    prometheus.Counter,
    "nigredo_watchdog_restarts_total",
    "Times that a process ended itself to be started anew, since it stood still with work to do",
    unit="restarts",
    answers="Does a processor hang now and then?",
    processes=[RATE_LIMITER, PERSISTER],
)
END_TO_END = Metric(
    Histogram,
    "nigredo_end_to_end_seconds",
    "Time from taking a form until it was judged, its lead persisted, its lead delivered",
    unit="seconds",
    answers="How long does a lead take through the whole? The API's latency says nothing about it.",
    processes=[RATE_LIMITER, PERSISTER, WEBHOOK_SENDER],
    labels={"stage": ("judged", "persisted", "delivered")},
    first=known.first_of(rate_limiter=("judged",), persister=("persisted",), webhook_sender=("delivered",)),
    buckets=known.END_TO_END_S,
)

# --- webhook sink -----------------------------------------------------------------------------------------------------

WEBHOOK_SUCCESS = Metric(
    prometheus.Counter,
    "nigredo_webhook_success_total",
    "Attempts at delivery that the receiver took",
    unit="attempts",
    answers="Does the receiver take leads?",
    processes=[WEBHOOK_SENDER],
    labels={"endpoint": known.endpoints},
)
WEBHOOK_FAILURE = Metric(
    prometheus.Counter,
    "nigredo_webhook_failure_total",
    "Attempts at delivery that failed",
    unit="attempts",
    answers="Does the receiver fail, and how: silent, unreachable, refusing, broken?",
    processes=[WEBHOOK_SENDER],
    labels={"endpoint": known.endpoints, "reason": ("timeout", "connect", "4xx", "5xx", OTHER)},
)
WEBHOOK_ATTEMPT = Metric(
    Histogram,
    "nigredo_webhook_attempt_seconds",
    "Duration of an attempt at delivery, whatever came of it",
    unit="seconds",
    answers="Is the receiver slow?",
    processes=[WEBHOOK_SENDER],
    buckets=known.ATTEMPT_S,
)
WEBHOOK_BREAKER_OPEN = Metric(
    prometheus.Gauge,
    "nigredo_webhook_breaker_open",
    "1 while the breaker holds attempts back, else 0",
    unit="0 or 1",
    answers="Are deliveries held back because the receiver fails?",
    processes=[WEBHOOK_SENDER],
    labels={"endpoint": known.endpoints},
)
WEBHOOK_RETRIES_WAITING = Metric(
    prometheus.Gauge,
    "nigredo_webhook_retries_waiting",
    "Leads that failed and wait for their next attempt",
    unit="leads",
    answers="How much is to be sent again?",
    processes=[WEBHOOK_SENDER],
    labels={"endpoint": known.endpoints},
)
WEBHOOK_DEAD_LEADS = Metric(
    prometheus.Counter,
    "nigredo_webhook_dead_total",
    "Leads given up, put among the dead ones",
    unit="leads",
    answers="Did a lead not reach the receiver for good, and why?",
    processes=[WEBHOOK_SENDER],
    labels={"endpoint": known.endpoints, "reason": ("refused", "gave_up", OTHER)},
)
WEBHOOK_OLDEST_UNDELIVERED_AGE = Metric(
    prometheus.Gauge,
    "nigredo_webhook_oldest_undelivered_age_seconds",
    "Time since the oldest lead that the receiver does not have was taken in hand; 0 when there is none",
    unit="seconds",
    answers="Since when does the receiver not get its leads? Stays up while the breaker makes failures stop.",
    processes=[WEBHOOK_SENDER],
    labels={"endpoint": known.endpoints},
)

CATALOGUE: Sequence[Metric[Any]] = tuple(value for value in list(globals().values()) if isinstance(value, Metric))
"""All metrics, in the order of their declaration."""


def start(process: str, settings: Settings) -> None:
    """Expose the metrics of a process (`ingest`, `rate-limiter`, …), all at 0. Call once, before the work starts.

    Includes the processor time, memory and open files of the process, except in ingest, whose workers share one
    exposition: `ingest/worker_metrics.py` adds the values of all workers.
    """
    prometheus.disable_created_metrics()  # type: ignore[no-untyped-call] # the library's oversight
    for metric in CATALOGUE:
        if process in metric.processes:
            metric.start(process, settings)
    if process != INGEST:
        prometheus.ProcessCollector(registry=REGISTRY)


def know_endpoint(endpoint: str) -> None:
    """Add the children of a webhook endpoint, at 0; beyond `ENDPOINTS_MAX` endpoints, further ones count as `other`."""
    for metric in CATALOGUE:
        if "endpoint" in metric.labels:
            metric.know("endpoint", endpoint, most=known.ENDPOINTS_MAX)


def exposition() -> bytes:
    """Return the metrics of this process in Prometheus' text format 0.0.4."""
    return generate_latest(REGISTRY)
