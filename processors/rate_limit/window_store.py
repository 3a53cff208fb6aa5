"""Window store: the limiter's in-memory windows of one partition's networks."""

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
"""The longest window that `RATE_LIMIT_WINDOW_SECONDS` allows."""
CLOCK_SLACK_MS = 600_000
"""Expired windows stay this much longer, so that a clock corrected by minutes does not make them load again."""
FAR_FUTURE_MS = 2**62
REPORT_EVERY = 10_000
"""Records loaded between two progress reports."""


class WindowStore:
    """Windows in the order of their last change: first those loaded, in the topic's order, then those changed since.

    A loaded window stays encoded until a record of its network arrives.
    """

    def __init__(self, codec: Codec) -> None:
        self._codec = codec
        self._loaded = LatestWindows(codec)
        # An OrderedDict, because a plain dict finds its first key ever more slowly as more keys before it are deleted.
        self._changed: OrderedDict[str, RateLimitState] = OrderedDict()
        self.furthest: Mark | None = None
        """The last record judged by any loaded window; its timestamp is an upper bound. None without windows."""
        self.evicted_until_ms = 0
        """Epoch milliseconds: judging a record older than this may need an evicted window."""

    def __len__(self) -> int:
        return len(self._loaded) + len(self._changed)

    def load(
        self,
        messages: Iterable[Message],
        committed: int,
        report: Callable[[int], None],
        *,
        not_after_ms: int = FAR_FUTURE_MS,
    ) -> None:
        """Load the windows from a partition of `nigredo.rate-limits`, oldest record first.

        committed: the offset at which judging continues. Windows at or past it stay whatever their age, because their
        record comes again. report: called with the number of records every `REPORT_EVERY`. not_after_ms: time of a
        record still to be judged, in epoch milliseconds; windows that affect its verdict stay.
        Raises DependencyDown, also for a window that cannot be decoded.
        """
        for number, message in enumerate(messages, 1):
            try:
                self._loaded.take(message.key() or b"", message.value())
            except Undecodable as error:
                # Hold the partition, because without this window the network's count would restart at zero.
                position = f"partition {message.partition()}, offset {message.offset()}"
                raise DependencyDown(f"a window in {RATE_LIMITS} cannot be read, {position}: {error}") from error
            if number % REPORT_EVERY == 0:
                report(number)
                self._evict_loaded(committed, not_after_ms)
        self._evict_loaded(committed, not_after_ms)
        self.furthest = self._loaded.furthest()

    def _evict_loaded(self, committed: int, not_after_ms: int) -> None:
        """Evict the loaded windows that had expired when the newest window below `committed` last changed.

        Records still to be judged are no older than that change, unless a clock was set back; windows past `committed`
        may be younger than some of these records. Reads only the rank in the encoded window; `evict_expired` evicts the
        rest little by little.
        """
        ranks = (rank_of(self._codec, value) for value in self._loaded)
        newest_ms = next((rank.updated_at_ms for rank in ranks if rank.input_offset < committed), 0)
        until_ms = min(newest_ms, not_after_ms) - CLOCK_SLACK_MS

        def expired(value: bytes) -> bool:
            rank = rank_of(self._codec, value)
            return until_ms - rank.updated_at_ms >= WINDOW_LONGEST_MS and rank.input_offset < committed

        self._note_evicted(until_ms, self._loaded.evict(expired))

    def _note_evicted(self, until_ms: int, evicted: int) -> None:
        if evicted:
            self.evicted_until_ms = max(self.evicted_until_ms, until_ms)

    def get(self, network: str) -> RateLimitState | None:
        """Return a network's window; None without one. Raises DependencyDown for a window that cannot be decoded."""
        found = self._changed.get(network)
        if found is None and (value := self._loaded.get(network.encode())) is not None:
            try:
                found = self._changed[network] = decode_window(self._codec, value)
            except Undecodable as error:
                # Corrupt in its middle: loading reads only the start and the end of the encoded window.
                raise DependencyDown(f"a window in {RATE_LIMITS} cannot be read: {error}") from error
            self._loaded.pop(network.encode())
        return found

    def put(self, state: RateLimitState) -> None:
        """Store a network's changed window, replacing its earlier one."""
        self._loaded.pop(state.client_network.encode())
        self._changed[state.client_network] = state
        self._changed.move_to_end(state.client_network)

    def evict_expired(self, now: datetime, at_once: int) -> None:
        """Evict windows that affect no verdict any more, oldest first; the topic stores them for days.

        now: time of the newest record. After a clock was set back by less than `CLOCK_SLACK_MS`, every window needed is
        still here; after a larger step `evicted_until_ms` shows that the windows must be loaded again first.
        at_once: most windows to evict; more than a batch can add, so that eviction keeps up. Among windows of different
        lengths, a longer one may delay the eviction of shorter ones until it expires itself.
        """
        until = now - timedelta(milliseconds=CLOCK_SLACK_MS)

        def expired(value: bytes) -> bool:
            try:
                return forgettable(decode_window(self._codec, value), until)
            except Undecodable:
                age_ms = until.timestamp() * 1000 - rank_of(self._codec, value).updated_at_ms
                return age_ms >= WINDOW_LONGEST_MS

        evicted = self._loaded.evict(expired, at_once)
        expired_networks = []
        for network, state in islice(self._changed.items(), at_once - evicted):
            if not forgettable(state, until):
                break
            expired_networks.append(network)
        for network in expired_networks:
            del self._changed[network]
        self._note_evicted(round(until.timestamp() * 1000), evicted + len(expired_networks))
