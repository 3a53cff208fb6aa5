"""Events on the topics, as immutable values.

The Avro files beside this module are the contract with external readers; these classes mirror them field by field, held
by a contract test. Times are aware UTC with millisecond precision, like Kafka's timestamps. A client network is an IPv4
address or an IPv6 /64 in text form. Records are keyed by the lead id unless a section or class names another key.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from datetime import datetime
from uuid import UUID

from schemas.immutable import immutable


@immutable
class Contact:
    """All personal data of a lead, kept together so that it can be left out as a whole; its `repr` shows none of it."""

    name: str = field(repr=False)
    email: str = field(repr=False)
    message: str = field(repr=False)
    extra: Mapping[str, str] = field(repr=False)


# --- nigredo.submissions (key: client network) -----------------------------------------------------------------------


@immutable
class Submission:
    """A form as accepted by ingest, before the limiter's verdict."""

    id: UUID
    client_network: str
    ip_address: str
    user_agent: str | None
    form_id: str | None
    source: str | None
    contact: Contact
    taken_at: datetime
    limit: int
    """Accepted submissions allowed in a window; part of the record so that a replay reaches the same verdict."""
    window_s: int
    exempt: bool
    edge_verdict: str | None
    """Set when ingest refused the form at once: `rate_limited`, `spam` or `duplicate`; only a release accepts it."""
    spam_sign: str | None = None
    """Sign of spam when the verdict is `spam`: `honeypot` or `too_fast`."""


@immutable
class LimitReset:
    """Command that frees a client network: its window counts no submission before this record."""

    client_network: str
    requested_by: str
    requested_at: datetime


@immutable
class RejectionRelease:
    """Command that accepts a refused submission outside the limit, once: the rejection is deleted afterwards."""

    lead_id: UUID
    client_network: str
    requested_by: str
    requested_at: datetime
    rejection_partition: int | None = None
    """Partition and offset of the rejection in `nigredo.rejections`; a release without them is ignored."""
    rejection_offset: int | None = None


@immutable
class RefusalCount:
    """Count of submissions refused at the edge whose contents are not stored, beyond 10 times the limit."""

    client_network: str
    count: int
    since: datetime
    until: datetime


# --- what the limiter decides ----------------------------------------------------------------------------------------


@immutable
class Lead:
    """An accepted submission, on `nigredo.leads`; this record is the event `lead.created`."""

    id: UUID
    client_network: str
    ip_address: str
    user_agent: str | None
    form_id: str | None
    source: str | None
    contact: Contact
    taken_at: datetime
    submitted_at: datetime
    """Append time of the submission at the broker, which is the clock of the limit."""
    released: bool
    submission_partition: int
    submission_offset: int


@immutable
class Rejection:
    """A refused submission, on `nigredo.rejections`, stored so that an operator can release it."""

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
    """Time from which the limit would have accepted the submission; None when waiting would not help."""
    submission_partition: int
    submission_offset: int
    spam_sign: str | None = None
    """`honeypot` or `too_fast` when the reason is `spam`."""


@immutable
class Acceptance:
    """A submission accepted within the window."""

    id: UUID
    at: datetime


@immutable
class RateLimitState:
    """The window of one client network after a verdict, on `nigredo.rate-limits` (key: client network)."""

    client_network: str
    limit: int
    window_s: int
    accepted: tuple[Acceptance, ...]
    """Counted acceptances, oldest first, at most `limit`."""
    refused: int
    """Submissions refused since the oldest counted acceptance."""
    # Keyword-only, so that `updated_at` and `input_offset` stay last on the wire, where windows are ranked undecoded.
    exempt: tuple[Acceptance, ...] = field(default=(), kw_only=True)
    """Newest acceptances outside the limit or before the network was freed, oldest first. Never counted, but cached so
    that no submission is accepted twice."""
    updated_at: datetime
    """Append time of the newest submission judged; never decreases."""
    input_offset: int
    """Offset of the last submission included; of several states the greatest wins, whichever was written last."""


# --- webhooks --------------------------------------------------------------------------------------------------------


@immutable
class DeliveryAttempt:
    """One attempt to deliver a lead, on `nigredo.deliveries`, successful or not."""

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
    """Whether a replay requested the attempt."""
    answer_excerpt: str | None = None
    """First 512 bytes of the answer, with the lead's own data masked."""


@immutable
class WebhookRetry:
    """A scheduled retry, on `nigredo.webhook-retries.{endpoint}.{delay}`."""

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
    """A dead lead, on `nigredo.webhook-dead`: without a replay, the endpoint gets no further attempt."""

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
    """A request to send a lead again, on `nigredo.webhook-replays`; refers to the lead's record instead of a copy."""

    lead_id: UUID
    endpoint: str
    requested_by: str
    requested_at: datetime
    lead_partition: int
    lead_offset: int


# --- the system itself -----------------------------------------------------------------------------------------------


@immutable
class RecordHeader:
    """One Kafka header of a parked record."""

    key: str
    value: bytes | None


@immutable
class DeadLetter:
    """A record that a stage could not process, on `nigredo.dead-letters`, byte for byte, with the reason."""

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
    """A current control entry, on `nigredo.control` under the key `kind:name`.

    One record type for all kinds instead of a union, because a union cannot grow under FULL_TRANSITIVE compatibility.
    """

    kind: str
    name: str
    value: Mapping[str, str]
    set_by: str
    set_at: datetime
    expires_at: datetime | None


@immutable
class AuditEntry:
    """A change by an operator, on `nigredo.audit`: actor, action, subject and time."""

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
