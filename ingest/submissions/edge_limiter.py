"""Edge rate limiter: answers 429 before Kafka, with the same pure function as the limiter processor.

Adds the submissions that this node accepted to the windows that the limiter last wrote (`nigredo.rate-limits`). So two
nodes agree as soon as the limiter has judged, and a restarted node reads the windows again. The limiter stays the
authority: submissions of a network that was evicted here, past a bound, are refused there all the same.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from uuid import UUID

from ingest.submissions.local_acceptances import LocalAcceptances
from nigredo.avro.codec import Codec, Undecodable
from nigredo.avro.encoded_window import decode_window, rank_of
from nigredo.kafka.materialized_view import Row
from nigredo.observability.logs import get_logger
from nigredo.rate_limit.latest_windows import LatestWindows
from nigredo.rate_limit.window import Verdict, judge
from schemas.events import RateLimitState, RefusalCount, Submission

log = get_logger()

CLOCK_MARGIN = timedelta(minutes=1)
"""Time for which an expired window is still held, because clocks differ."""
EVICTED_AT_ONCE = 1000
STORED_IN_FULL = 10
"""Refusals of one kind that are stored with their contents, as a multiple of the limit; later ones are only counted."""


@dataclass(slots=True)
class _Refused:
    since: datetime
    count: int = 0
    unreported: int = 0
    unreported_since: datetime | None = None


class EdgeLimiter:
    """The window of every client network, as this node sees it.

    A `MaterializedView` fills it from its own thread; the event loop reads it.
    """

    def __init__(self, codec: Codec, *, window_s: int, networks_max: int) -> None:
        self._codec = codec
        self._window = timedelta(seconds=window_s)
        self._networks_max = networks_max
        self._states = self._loading = LatestWindows(codec)
        self._local = LocalAcceptances(self._window, networks_max)
        # An `OrderedDict`, for the reason given in `LocalAcceptances`.
        self._refused: OrderedDict[bytes, _Refused] = OrderedDict()

    # --- the limiter's windows: called in the view's thread -----------------------------------------------------------

    def begin(self) -> None:
        """Start a reload; the current windows stay in use until `loaded`."""
        self._loading = LatestWindows(self._codec)

    def apply(self, rows: Sequence[Row]) -> None:
        """Apply the limiter's states. Unknown schemas are fetched here, so that the event loop need not wait."""
        states = self._loading
        for row in rows:
            if row.key is None:
                continue
            try:
                states.take(row.key, row.value)
            except Undecodable as error:
                log.error("rate limit window unreadable", error=str(error))
        oldest_ms = int((time.time() - (self._window + CLOCK_MARGIN).total_seconds()) * 1000)

        def over(value: bytes) -> bool:
            return len(states) > self._networks_max or rank_of(self._codec, value).updated_at_ms < oldest_ms

        states.evict(over, EVICTED_AT_ONCE + len(rows))

    def loaded(self) -> None:
        """Put the windows applied since `begin` into use."""
        self._states = self._loading

    # --- judging submissions: called in the event loop ----------------------------------------------------------------

    @property
    def networks(self) -> int:
        """Number of networks held."""
        return len(self._states) + len(self._local)

    def judge(self, submission: Submission, at: datetime) -> Verdict:
        """Return the verdict that the limiter will most likely reach on a submission accepted at this moment."""
        key = submission.client_network.encode()
        state = self._state(key)
        known = -1 if state is None else state.input_offset
        # The limiter has judged everything up to its offset, so only later acceptances are added.
        since = self._local.since(key, known)
        if since:
            if state is None:
                state = RateLimitState(submission.client_network, submission.limit, submission.window_s, (), 0, at, -1)
            # Kafka reports an offset a moment after it wrote the record, so the limiter may have judged it already.
            judged = {acceptance.id for acceptance in (*state.accepted, *state.exempt)}
            ours = (acceptance for acceptance in since if acceptance.id not in judged)
            state = replace(state, accepted=(*state.accepted, *ours))
        return judge(state, submission, at=at, offset=known + 1)

    def has(self, submission: Submission) -> bool:
        """Say whether a counted submission with this id is durable already, at this node or in the limiter's window.

        An exempt submission is published each time, as often as its network sends it.
        """
        key = submission.client_network.encode()
        state = self._state(key)
        judged = state is not None and any(acceptance.id == submission.id for acceptance in state.accepted)
        return judged or self._local.has(key, submission.id)

    def accepted(self, submission: Submission, at: datetime) -> None:
        """Count a submission in flight; call `confirm` when it is durable, or `release` when publishing failed."""
        self._local.add(submission.client_network.encode(), submission.id, at)

    def confirm(self, key: bytes, lead_id: UUID, offset: int | None) -> None:
        """Mark a submission as durable: in Kafka at an offset, or in the spool with None.

        A submission with an offset counts here until the limiter's window has passed that offset.
        """
        self._local.confirm(key, lead_id, offset)

    def release(self, submission: Submission) -> None:
        """Stop counting a submission that Kafka did not acknowledge."""
        self._local.release(submission.client_network.encode(), submission.id)

    def record_refusal(self, submission: Submission, at: datetime) -> bool:
        """Count a refusal; return whether it is to be stored with its contents.

        Each kind of refusal has its own bound, so that programs that fill in the honeypot do not use up the share of
        people who were mistaken for a program, or who wrote too often.
        """
        key = f"{submission.client_network} {submission.spam_sign or ''}".encode()
        known = self._refused.pop(key, None)
        if known is None or at - known.since >= self._window:
            known = _Refused(at)
        self._refused[key] = known
        known.count += 1
        for _ in range(2):
            if len(self._refused) <= self._networks_max:
                break
            self._refused.popitem(last=False)
        if known.count <= STORED_IN_FULL * submission.limit:
            return True
        known.unreported += 1
        known.unreported_since = known.unreported_since or at
        return False

    def drain_refusal_counts(self, at: datetime) -> list[RefusalCount]:
        """Return the refusals that are only counted and were not returned before, one count a network and kind."""
        found = []
        for key, known in list(self._refused.items()):
            if known.unreported and known.unreported_since is not None:
                network = key.decode().partition(" ")[0]
                found.append(RefusalCount(network, known.unreported, since=known.unreported_since, until=at))
                known.unreported, known.unreported_since = 0, None
            if at - known.since >= self._window:
                del self._refused[key]
        return found

    def _state(self, key: bytes) -> RateLimitState | None:
        found = self._states.get(key)
        if found is None:
            return None
        try:
            return decode_window(self._codec, found)
        except Undecodable:
            return None
