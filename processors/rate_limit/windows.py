"""The windows of one partition's networks, in the limiter's memory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from datetime import datetime
from itertools import islice

from confluent_kafka import Message

from nigredo.encoded_window import Rank, decoded, rank_of
from nigredo.telemetry import get_logger
from nigredo.window import forgettable
from schemas.codec import Codec, Undecodable
from schemas.events import RateLimitState

log = get_logger()

WINDOW_LONGEST_MS = 86_400_000
"""No window is longer (`RATE_LIMIT_WINDOW_SECONDS`)."""


class Windows:
    """Windows in the order of their last change. What was loaded stays encoded until a record asks for it."""

    def __init__(self, codec: Codec) -> None:
        self._codec = codec
        # An ordered dictionary, since a plain one takes ever longer to find its first key the more were deleted.
        self._windows: OrderedDict[str, RateLimitState | bytes] = OrderedDict()
        self.furthest = -1
        """The greatest input offset that any window loaded tells of."""

    def __len__(self) -> int:
        return len(self._windows)

    def load(self, messages: Iterable[Message], committed: int | None, told: Callable[[int], None]) -> None:
        """Take the windows of a partition of `nigredo.rate-limits`, oldest record first.

        committed: where judging goes on. Windows at or past it are kept whatever their age: their record comes again.
        told: called with the number of records every few thousand. Raises DependencyDown.
        """
        best: dict[str, tuple[Rank, bytes]] = {}
        for number, message in enumerate(messages, 1):
            if number % 10_000 == 0:
                told(number)
            network, value = (message.key() or b"").decode(), message.value()
            if value is None:
                # Nobody here writes one: it tells no offset, so that a late one could free a network (docs/adr/0014).
                best.pop(network, None)
                continue
            try:
                rank = rank_of(self._codec, value)
            except Undecodable as error:
                # The network's last state that can be read stands.
                at = {"partition": message.partition(), "offset": message.offset()}
                log.error("a window cannot be read", error=str(error), **at)
                continue
            if network not in best or rank.input_offset >= best[network][0].input_offset:
                best[network] = (rank, value)
        # What is still to be judged is no older than the newest verdict: windows over by then decide nothing. Only what
        # their bytes tell is asked here; `forget` lets go of the rest of them little by little.
        newest_ms = max((rank.updated_at_ms for rank, _ in best.values()), default=0)
        self.furthest = max((rank.input_offset for rank, _ in best.values()), default=-1)
        for network, (rank, value) in sorted(best.items(), key=lambda item: item[1][0].updated_at_ms):
            over = newest_ms - rank.updated_at_ms >= WINDOW_LONGEST_MS
            if not over or committed is None or rank.input_offset >= committed:
                self._windows[network] = value

    def get(self, network: str) -> RateLimitState | None:
        """Return a network's window."""
        found = self._windows.get(network)
        if isinstance(found, bytes):
            found = self._windows[network] = decoded(self._codec, found)
        return found

    def keep(self, state: RateLimitState) -> None:
        """Put a window in the place of the network's older one."""
        self._windows[state.client_network] = state
        self._windows.move_to_end(state.client_network)

    def forget(self, now: datetime, at_once: int) -> None:
        """Let go of windows that decide nothing any more, oldest first; the topic forgets them by itself.

        at_once: how many may go; more than a batch can add, so that it keeps up. Where windows of different lengths
        are mixed, a longer one may hold up shorter ones until it is over itself.
        """
        over = []
        for network in islice(self._windows, at_once):
            state = self.get(network)
            if state is None or not forgettable(state, now):
                break
            over.append(network)
        for network in over:
            del self._windows[network]
