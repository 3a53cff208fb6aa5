"""Every event that travels on a topic, as the value the program works with and never changes.

The Avro files beside this module are the contract with readers outside; these classes mirror them field by field
(a contract test holds the two together). Times are aware UTC with millisecond precision, because that is what
Kafka's own timestamps have. A client network is an IPv4 address or an IPv6 /64 in text form and is the key wherever
an event says so; every other event is keyed by the lead id.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from datetime import datetime
from uuid import UUID

from schemas.immutable import immutable


@immutable
class Contact:
    """Everything personal about a lead, in one place so that it can be left out as a whole: of its text form too."""

    name: str = field(repr=False)
    email: str = field(repr=False)
    message: str = field(repr=False)
    extra: Mapping[str, str] = field(repr=False)


# --- nigredo.submissions (key: client network) -----------------------------------------------------------------------


@immutable
class Submission:
    """A form as ingest took it, before the limit is judged."""

    id: UUID
    client_network: str
    ip_address: str
    user_agent: str | None
    form_id: str | None
    source: str | None
    contact: Contact
    taken_at: datetime
    limit: int
    """Accepted submissions a window allows; travels with the record so that a replay reaches the same verdict."""
    window_s: int
    exempt: bool
    edge_verdict: str | None
    """Set when ingest refused it at once: `rate_limited`, `spam` or `duplicate`. Never accepted later by itself."""
    spam_sign: str | None = None
    """By what a program gave itself away, where the verdict is `spam`: `honeypot` or `too_fast`."""


@immutable
class LimitReset:
    """Frees a client network: its window counts nothing that came before this record."""

    client_network: str
    requested_by: str
    requested_at: datetime


@immutable
class RejectionRelease:
    """Puts a refused submission through, outside the limit, once: the rejection is gone afterwards."""

    lead_id: UUID
    client_network: str
    requested_by: str
    requested_at: datetime
    rejection_partition: int | None = None
    """Where in `nigredo.rejections` the refused submission was found; a release without its place is void."""
    rejection_offset: int | None = None


@immutable
class RefusalCount:
    """Stands for many refusals at the edge whose contents are not kept (past 10 times the limit)."""

    client_network: str
    count: int
    since: datetime
    until: datetime


# --- what the limiter decides ----------------------------------------------------------------------------------------


@immutable
class Lead:
    """An accepted submission, on `nigredo.leads`: this record is `lead.created`."""

    id: UUID
    client_network: str
    ip_address: str
    user_agent: str | None
    form_id: str | None
    source: str | None
    contact: Contact
    taken_at: datetime
    submitted_at: datetime
    """The broker's append time of the submission: the clock of the limit."""
    released: bool
    submission_partition: int
    submission_offset: int


@immutable
class Rejection:
    """A refused submission, on `nigredo.rejections`, kept so that it can be released."""

    id: UUID
    client_network: str
    ip_address: str
    user_agent: str | None
    form_id: str | None
    source: str | None
    contact: Contact
    taken_at: datetime
    submitted_at: datetime
    reason: str
    """`rate_limited`, `spam` or `duplicate`."""
    retry_at: datetime | None
    """From when the limit would have let it through; None where waiting is no cure."""
    submission_partition: int
    submission_offset: int
    spam_sign: str | None = None
    """`honeypot` or `too_fast`, where the reason is `spam`."""


@immutable
class Acceptance:
    """One submission accepted within the window."""

    id: UUID
    at: datetime


@immutable
class RateLimitState:
    """The window of one client network after a verdict, on `nigredo.rate-limits` (key: client network)."""

    client_network: str
    limit: int
    window_s: int
    accepted: tuple[Acceptance, ...]
    """Oldest first, at most `limit` of them."""
    refused: int
    """Submissions refused since the oldest counted acceptance."""
    # By name only: `updated_at` and `input_offset` stay last on the wire, where windows are ranked by them undecoded.
    exempt: tuple[Acceptance, ...] = field(default=(), kw_only=True)
    """The newest accepted outside the limit, or before the network was freed, oldest first: known, so that none is
    accepted twice, and never counted."""
    updated_at: datetime
    """Append time of the newest submission judged; never goes back."""
    input_offset: int
    """The submission offset up to which this state is true (inclusive); the greatest wins, whoever wrote last."""


# --- webhooks --------------------------------------------------------------------------------------------------------


@immutable
class DeliveryAttempt:
    """One attempt to deliver a lead, on `nigredo.deliveries`, whatever came of it."""

    id: UUID
    lead_id: UUID
    endpoint: str
    webhook_url: str
    attempt: int
    """1 for the first attempt."""
    sent_at: datetime
    duration_ms: int
    outcome: str
    """`delivered`, `retry` or `dead`."""
    status_code: int | None
    error_message: str | None
    lead_partition: int
    lead_offset: int
    replay: bool = False
    """Whether it was asked for by a replay rather than due by itself."""
    answer_excerpt: str | None = None
    """The first 512 bytes of the answer, with what the lead itself says masked."""


@immutable
class WebhookRetry:
    """A later attempt that waits, on `nigredo.webhook-retries.{endpoint}.{delay}`."""

    lead_id: UUID
    endpoint: str
    attempts: int
    not_before: datetime
    first_attempt_at: datetime
    lead_partition: int
    lead_offset: int
    replay: bool = False


@immutable
class WebhookDead:
    """A lead that one endpoint will not get by itself any more, on `nigredo.webhook-dead`."""

    lead_id: UUID
    endpoint: str
    attempts: int
    reason: str
    status_code: int | None
    error_message: str | None
    died_at: datetime
    lead_partition: int
    lead_offset: int


@immutable
class WebhookReplay:
    """A request to send a lead again, on `nigredo.webhook-replays`: a reference, not a copy."""

    lead_id: UUID
    endpoint: str
    requested_by: str
    requested_at: datetime
    lead_partition: int
    lead_offset: int


# --- what is about the system itself ---------------------------------------------------------------------------------


@immutable
class RecordHeader:
    """One Kafka header of a parked record."""

    key: str
    value: bytes | None


@immutable
class DeadLetter:
    """A record that a stage could not use, on `nigredo.dead-letters`, byte for byte, with the reason."""

    function: str
    reason: str
    error: str
    origin_topic: str
    origin_partition: int
    origin_offset: int
    origin_timestamp: datetime
    key: bytes | None
    value: bytes | None
    headers: tuple[RecordHeader, ...]
    parked_at: datetime


@immutable
class ControlEntry:
    """A present setting, on `nigredo.control` under the key `kind:name`.

    One record for all kinds rather than a union: a union cannot grow under FULL_TRANSITIVE, and kinds will come.
    """

    kind: str
    name: str
    value: Mapping[str, str]
    set_by: str
    set_at: datetime
    expires_at: datetime | None


@immutable
class AuditEntry:
    """Who changed what, when, on `nigredo.audit`."""

    actor: str
    action: str
    subject: str
    details: Mapping[str, str]
    at: datetime


Event = (
    Submission
    | LimitReset
    | RejectionRelease
    | RefusalCount
    | Lead
    | Rejection
    | RateLimitState
    | DeliveryAttempt
    | WebhookRetry
    | WebhookDead
    | WebhookReplay
    | DeadLetter
    | ControlEntry
    | AuditEntry
)
