"""The limit's early word: the 429 that a client gets at once, by the limiter's own function.

Knows what the limiter last wrote about each network (`nigredo.rate-limits`) and what this node accepted since. So two
nodes agree as soon as the limiter has judged, and a node that was restarted remembers. The limiter stays the authority:
what is forgotten here, past a bound, it refuses all the same.
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

KEPT_LONGER = timedelta(minutes=1)
"""Past the window, for clocks that differ."""
LET_GO_AT_ONCE = 1000
TOLD_IN_FULL = 10
"""Refusals of one kind whose contents are kept, as a multiple of the limit; of what comes after only the number is."""


@dataclass(slots=True)
class _Refused:
    since: datetime
    count: int = 0
    untold: int = 0
    untold_since: datetime | None = None


class EdgeLimiter:
    """What a node knows of every client network's window. A `TopicView` fills it from its thread, the loop asks it."""

    def __init__(self, codec: Codec, *, window_s: int, networks_max: int) -> None:
        self._codec = codec
        self._window = timedelta(seconds=window_s)
        self._networks_max = networks_max
        self._states = self._coming = LatestWindows(codec)
        self._taken = LocalAcceptances(self._window, networks_max)
        # An `OrderedDict`, for the reason in `TakenHere`.
        self._refused: OrderedDict[bytes, _Refused] = OrderedDict()

    # --- what the limiter wrote: the view's thread --------------------------------------------------------------------

    def begin(self) -> None:
        """Start afresh; what was known stands meanwhile."""
        self._coming = LatestWindows(self._codec)

    def apply(self, rows: Sequence[Row]) -> None:
        """Take the limiter's states. A schema that is not known yet is learnt here: the loop must not wait for it."""
        states = self._coming
        for row in rows:
            if row.key is None:
                continue
            try:
                states.take(row.key, row.value)
            except Undecodable as error:
                log.error("a rate limit cannot be read", error=str(error))
        oldest_ms = int((time.time() - (self._window + KEPT_LONGER).total_seconds()) * 1000)

        def over(value: bytes) -> bool:
            return len(states) > self._networks_max or rank_of(self._codec, value).updated_at_ms < oldest_ms

        states.evict(over, LET_GO_AT_ONCE + len(rows))

    def loaded(self) -> None:
        """Make what came since `begin` hold."""
        self._states = self._coming

    # --- what this node does: the event loop --------------------------------------------------------------------------

    @property
    def networks(self) -> int:
        """How many networks are remembered."""
        return len(self._states) + len(self._taken)

    def judge(self, submission: Submission, at: datetime) -> Verdict:
        """Return what the limiter will most likely say of a submission that is taken now."""
        key = submission.client_network.encode()
        state = self._state(key)
        known = -1 if state is None else state.input_offset
        # The limiter has judged all up to its offset; only what came after it is ours to add.
        since = self._taken.since(key, known)
        if since:
            if state is None:
                state = RateLimitState(submission.client_network, submission.limit, submission.window_s, (), 0, at, -1)
            # Where a record stands is told a moment after it got there: the limiter may have judged it already.
            judged = {acceptance.id for acceptance in (*state.accepted, *state.exempt)}
            ours = (acceptance for acceptance in since if acceptance.id not in judged)
            state = replace(state, accepted=(*state.accepted, *ours))
        return judge(state, submission, at=at, offset=known + 1)

    def has(self, submission: Submission) -> bool:
        """Say whether a submission that counts was kept before under its id, by this node or judged already.

        What is exempt may be sent as often as its network likes, and is published each time.
        """
        key = submission.client_network.encode()
        state = self._state(key)
        judged = state is not None and any(acceptance.id == submission.id for acceptance in state.accepted)
        return judged or self._taken.has(key, submission.id)

    def accepted(self, submission: Submission, at: datetime) -> None:
        """Remember that a submission is on its way; `keep` it when it is durable, or `undo` it when it failed."""
        self._taken.add(submission.client_network.encode(), submission.id, at)

    def confirm(self, key: bytes, lead_id: UUID, offset: int | None) -> None:
        """Take note that Kafka has a submission, and where, or the spool: with its offset the limiter knows of it."""
        self._taken.keep(key, lead_id, offset)

    def release(self, submission: Submission) -> None:
        """Forget a submission that Kafka did not acknowledge."""
        self._taken.forget(submission.client_network.encode(), submission.id)

    def record_refusal(self, submission: Submission, at: datetime) -> bool:
        """Count a refusal; return whether its contents are still to be kept.

        Each kind of refusal has its own bound: programs that fill in the honeypot must not use up what is kept of
        people who were taken for a program, or who wrote too often.
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
        if known.count <= TOLD_IN_FULL * submission.limit:
            return True
        known.untold += 1
        known.untold_since = known.untold_since or at
        return False

    def drain_refusal_counts(self, at: datetime) -> list[RefusalCount]:
        """Return, once, the refusals that only their number tells of."""
        found = []
        for key, known in list(self._refused.items()):
            if known.untold and known.untold_since is not None:
                found.append(
                    RefusalCount(key.decode().partition(" ")[0], known.untold, since=known.untold_since, until=at)
                )
                known.untold, known.untold_since = 0, None
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
