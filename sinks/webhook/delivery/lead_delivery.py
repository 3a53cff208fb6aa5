"""Lead delivery: repeats attempts in memory until the lead is delivered, dead, rescheduled or withdrawn."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from uuid import UUID

from nigredo.clock import utc_now
from nigredo.endpoints.endpoint import Endpoint
from nigredo.errors import DependencyDown
from nigredo.kafka.record import Record
from nigredo.observability.logs import get_logger
from nigredo.settings import Settings
from schemas.events import Lead
from sinks.webhook.delivery.admission import AdmissionControl
from sinks.webhook.delivery.attempt_log import AttemptLog
from sinks.webhook.delivery.retry_policy import IN_PLACE_LONGEST_S, EndpointState, RetryDecision, decide_retry
from sinks.webhook.model import AttemptResult, InFlightLead, Origin, Outcome, Ticket
from sinks.webhook.transport.client import WebhookClient
from sinks.webhook.transport.request import traceparent_of

log = get_logger()

RESTING_MAX = 2000
"""Most leads that wait in memory for their next attempt; beyond that, leads go to the shortest retry topic."""


class LeadDelivery:
    """Delivers the leads of one membership. Use on one event loop."""

    def __init__(
        self,
        endpoint: Endpoint,
        client: WebhookClient,
        attempts: AttemptLog,
        admission: AdmissionControl,
        *,
        settings: Callable[[], Settings],
        keys: Callable[[], Sequence[bytes]],
        still_assigned: Callable[[Ticket], bool],
    ) -> None:
        """settings, keys: return the current settings and signing keys.

        still_assigned: returns whether the assignment of a ticket is current.
        """
        self.resting = 0
        """Number of tasks that wait in memory for their next attempt or retry."""
        self._endpoint = endpoint
        self._client = client
        self._attempts = attempts
        self._admission = admission
        self._settings = settings
        self._keys = keys
        self._still_assigned = still_assigned
        self._stopping = asyncio.Event()
        self._last_delivered_at: datetime | None = None
        self._in_flight: dict[UUID, set[InFlightLead]] = {}

    def stop(self) -> None:
        """Start no further attempt."""
        self._stopping.set()
        self._admission.clear()

    def clear(self) -> None:
        """Release the tasks that wait for admission although their lead is withdrawn or their assignment ended."""
        self._admission.clear()

    def ours(self, ticket: Ticket) -> bool:
        """Return whether to go on with a record: this sender is not stopping and the record's assignment is current."""
        return not self._stopping.is_set() and self._still_assigned(ticket)

    def withdraw(self, lead_id: UUID) -> None:
        """Make no further attempt for a lead, because the person was erased."""
        for case in self._in_flight.get(lead_id, ()):
            case.withdrawn = True
        self._admission.clear()

    async def run(self, lead: Lead, record: Record, ticket: Ticket, case: InFlightLead, origin: Origin) -> bool:
        """Attempt until the lead is delivered, dead, rescheduled or withdrawn, and settle its origin.

        Returns False when the assignment ended first. Raises DependencyDown when the origin cannot be settled.
        """
        cases = self._in_flight.setdefault(lead.id, set())
        cases.add(case)
        try:
            return await self._attempt(lead, record, ticket, case, origin)
        finally:
            cases.discard(case)
            if not cases:
                self._in_flight.pop(lead.id, None)

    async def _attempt(self, lead: Lead, record: Record, ticket: Ticket, case: InFlightLead, origin: Origin) -> bool:
        trace = traceparent_of(record.headers)

        def wanted() -> bool:
            return not case.withdrawn and self.ours(ticket)

        while await self._admission.acquire(wanted, fresh=case.number == 0, behind=case.replay):
            # The slot is held until the outcome is in the log, so that a crash repeats at most one attempt per slot.
            try:
                case.number += 1
                timeout_s = self._endpoint.timeout_s or self._settings().webhook_timeout_s
                attempt = await self._client.attempt(
                    lead, case.number, self._keys(), timeout_s=timeout_s, traceparent=trace
                )
                self._admission.record_result(lead.id, attempt)
                following = decide_retry(
                    attempt.outcome,
                    self._settings().webhook_retry_schedule,
                    number=case.number,
                    failing_for_s=(utc_now() - case.first_attempt_at).total_seconds(),
                    endpoint=await self._endpoint_state(lead.id, case, attempt),
                    retry_after_s=attempt.retry_after_s,
                )
                await self._attempts.append(lead, case, attempt, dead=following.dead)
                if await self._ended(lead, case, attempt, following, origin):
                    return True
            finally:
                self._admission.release(behind=case.replay)
            await self.rest(following.retry_in_s, ticket)
        if case.withdrawn:
            await origin.withdrawn()
        return case.withdrawn

    async def _ended(
        self, lead: Lead, case: InFlightLead, attempt: AttemptResult, following: RetryDecision, origin: Origin
    ) -> bool:
        """Write the decision and settle the origin; False when the next attempt is made here, after a wait."""
        if following.done:
            self._last_delivered_at = utc_now()
            if case.replay:
                await self._attempts.clear_dead(lead, case)
        elif following.dead:
            await self._attempts.mark_dead(lead, case, attempt)
        elif following.retry_in_s > IN_PLACE_LONGEST_S or self.resting >= RESTING_MAX:
            await origin.rescheduled(await self._attempts.schedule_retry(lead, case, following.retry_in_s))
            return True
        else:
            return False
        await origin.ended()
        return True

    async def _endpoint_state(self, lead_id: UUID, case: InFlightLead, attempt: AttemptResult) -> EndpointState:
        breaker = self._admission.breaker
        others_fail = breaker.others_fail(lead_id)
        if attempt.outcome == Outcome.REFUSED and breaker.closed and not others_fail and not breaker.informed:
            others_fail = not await self._fails_alone(lead_id)
        accepted_others = self._last_delivered_at is not None and self._last_delivered_at > case.first_attempt_at
        return EndpointState(breaker.closed, others_fail, accepted_others)

    async def _fails_alone(self, lead_id: UUID) -> bool:
        """Return whether the attempt log shows no other failing lead; False when the log cannot be read.

        A process that has just started has seen too few attempts itself: while the receiver rejects every lead, each
        restart would dead-letter one.
        """
        breaker = self._admission.breaker
        try:
            failing = await self._attempts.failing()
        except DependencyDown as error:
            log.warning("attempt log not read", error=str(error))
            return False
        if failing is None:
            return False
        if not breaker.informed:  # Unless the receiver accepted a lead meanwhile.
            breaker.recall(failing)
        return not breaker.others_fail(lead_id)

    async def rest(self, seconds: float, ticket: Ticket) -> None:
        """Wait before the next attempt, but not beyond the end of the assignment."""
        until = time.monotonic() + seconds
        self.resting += 1
        try:
            while self.ours(ticket) and (left := until - time.monotonic()) > 0:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._stopping.wait(), min(left, 0.5))
        finally:
            self.resting -= 1
