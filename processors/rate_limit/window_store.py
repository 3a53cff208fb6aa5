"""The windows of one partition's networks, in the limiter's memory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from itertools import islice

from confluent_kafka import Message

from nigredo.avro.codec import Codec, Undecodable
from nigredo.avro.encoded_window import decode_window, rank_of
from nigredo.errors import DependencyDown
from nigredo.log_position import Mark
from nigredo.rate_limit.latest_windows import LatestWindows
from nigredo.rate_limit.window import forgettable
from schemas.events import RateLimitState
from schemas.topics import RATE_LIMITS

WINDOW_LONGEST_MS = 86_400_000
"""No window is longer (`RATE_LIMIT_WINDOW_SECONDS`)."""
CLOCK_SLACK_MS = 600_000
"""Windows are kept this much longer, so that a clock corrected by minutes costs no second loading."""
FAR_OFF_MS = 2**62
TOLD_EVERY = 10_000


class WindowStore:
    """Windows in the order of their last change: those that were loaded, as they came, then those that changed since.

    What was loaded stays encoded until a record asks for it.
    """

    def __init__(self, codec: Codec) -> None:
        self._codec = codec
        self._loaded = LatestWindows(codec)
        # An ordered dictionary, since a plain one takes ever longer to find its first key the more were deleted.
        self._changed: OrderedDict[str, RateLimitState] = OrderedDict()
        self.furthest: Mark | None = None
        """The record up to which the furthest window loaded read, its time as a bound."""
        self.forgotten_until_ms = 0
        """Of records that are no older than this, no window that was let go of decides anything."""

    def __len__(self) -> int:
        return len(self._loaded) + len(self._changed)

    def load(
        self,
        messages: Iterable[Message],
        committed: int,
        told: Callable[[int], None],
        *,
        not_after_ms: int = FAR_OFF_MS,
    ) -> None:
        """Take the windows of a partition of `nigredo.rate-limits`, oldest record first.

        committed: where judging goes on. Windows at or past it are kept whatever their age: their record comes again.
        told: called with the number of records every few thousand. not_after_ms: the time of a record that is still
        to be judged; windows that decide about it are kept. Raises DependencyDown, also for a window that cannot be
        read.
        """
        for number, message in enumerate(messages, 1):
            try:
                self._loaded.take(message.key() or b"", message.value())
            except Undecodable as error:
                # Without it the network's limit would begin at zero: nothing of the partition is judged meanwhile.
                place = f"partition {message.partition()}, offset {message.offset()}"
                raise DependencyDown(f"a window in {RATE_LIMITS} cannot be read, {place}: {error}") from error
            if number % TOLD_EVERY == 0:
                told(number)
                self._let_go_of_loaded(committed, not_after_ms)
        self._let_go_of_loaded(committed, not_after_ms)
        self.furthest = self._loaded.furthest()

    def _let_go_of_loaded(self, committed: int, not_after_ms: int) -> None:
        """Let go of what was over when the newest window that was judged for good changed.

        What is still to be judged is no older than that, unless a clock was set back; windows past `committed` are
        younger than some of it. Only what their bytes tell is asked here; `forget` lets go of the rest of them little
        by little.
        """
        ranks = (rank_of(self._codec, value) for value in self._loaded)
        newest_ms = next((rank.updated_at_ms for rank in ranks if rank.input_offset < committed), 0)
        until_ms = min(newest_ms, not_after_ms) - CLOCK_SLACK_MS

        def over(value: bytes) -> bool:
            rank = rank_of(self._codec, value)
            return until_ms - rank.updated_at_ms >= WINDOW_LONGEST_MS and rank.input_offset < committed

        self._forgot(until_ms, self._loaded.evict(over))

    def _forgot(self, until_ms: int, gone: int) -> None:
        if gone:
            self.forgotten_until_ms = max(self.forgotten_until_ms, until_ms)

    def get(self, network: str) -> RateLimitState | None:
        """Return a network's window. Raises DependencyDown for one that cannot be read."""
        found = self._changed.get(network)
        if found is None and (value := self._loaded.get(network.encode())) is not None:
            try:
                found = self._changed[network] = decode_window(self._codec, value)
            except Undecodable as error:
                # Broken between its beginning and its end, which alone were read so far.
                raise DependencyDown(f"a window in {RATE_LIMITS} cannot be read: {error}") from error
            self._loaded.pop(network.encode())
        return found

    def keep(self, state: RateLimitState) -> None:
        """Put a window in the place of the network's older one."""
        self._loaded.pop(state.client_network.encode())
        self._changed[state.client_network] = state
        self._changed.move_to_end(state.client_network)

    def forget(self, now: datetime, at_once: int) -> None:
        """Let go of windows that decide nothing any more, oldest first; the topic keeps them for days.

        now: the time of the newest record. A clock that is set back by less than `CLOCK_SLACK_MS` finds all it needs;
        past that, `forgotten_until_ms` tells that the windows must be loaded again before they are asked.
        at_once: how many may go; more than a batch can add, so that it keeps up. Where windows of different lengths
        are mixed, a longer one may hold up shorter ones until it is over itself.
        """
        until = now - timedelta(milliseconds=CLOCK_SLACK_MS)

        def over(value: bytes) -> bool:
            try:
                return forgettable(decode_window(self._codec, value), until)
            except Undecodable:
                age_ms = until.timestamp() * 1000 - rank_of(self._codec, value).updated_at_ms
                return age_ms >= WINDOW_LONGEST_MS

        let_go = self._loaded.evict(over, at_once)
        gone = []
        for network, state in islice(self._changed.items(), at_once - let_go):
            if not forgettable(state, until):
                break
            gone.append(network)
        for network in gone:
            del self._changed[network]
        self._forgot(round(until.timestamp() * 1000), let_go + len(gone))
