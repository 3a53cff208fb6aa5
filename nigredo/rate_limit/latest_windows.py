"""Latest window of every network from `nigredo.rate-limits`, stored encoded; for the limiter and for ingest.

Of a million networks few are ever looked up. A window is therefore decoded only on look-up, and the values that decide
about it (input offset, time of the last change) are read from its bytes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator

from nigredo.avro.codec import Codec
from nigredo.avro.encoded_window import rank_of
from nigredo.log_position import Mark

OF_NO_RECORD = -1
"""Input offset of a window rewritten by `nigredo recover`: the window counts, but proves nothing about the log."""


class LatestWindows:
    """The window with the highest input offset of each network, in the order of last change.

    Keys are the record keys. Only one thread may change the windows; other threads may `get` meanwhile.
    """

    def __init__(self, codec: Codec) -> None:
        self._codec = codec
        # An OrderedDict, because a plain dict takes longer to find its first key the more keys were deleted.
        self._values: OrderedDict[bytes, bytes] = OrderedDict()

    def __len__(self) -> int:
        return len(self._values)

    def __iter__(self) -> Iterator[bytes]:
        """Yield the encoded windows, the last changed first."""
        return reversed(self._values.values())

    def furthest(self) -> Mark | None:
        """Return the mark of the record with the highest input offset; None when no window names a record.

        The mark's time is an upper bound, because a window's clock is never behind its record's. A window has its
        record's key. Scans all windows.
        """
        ranks = ((rank_of(self._codec, value), key) for key, value in self._values.items())
        rank, key = max(ranks, default=(None, b""))
        return None if rank is None or rank.input_offset < 0 else Mark.of(rank.input_offset, rank.updated_at_ms, key)

    def take(self, key: bytes, value: bytes | None) -> None:
        """Apply the topic's next record; an older window is ignored.

        Raises Undecodable, which leaves the stored window as it is, and DependencyDown.
        """
        if value is None:
            # The product writes no tombstone: without an input offset, a late one could free a network (docs/adr/0014).
            self._values.pop(key, None)
            return
        offset = rank_of(self._codec, value).input_offset
        known = self._values.get(key)
        if known is None:
            self._values[key] = value
        # A window may arrive late: written by a worker after its partition was reassigned.
        elif rank_of(self._codec, known).input_offset <= offset:
            self._values[key] = value
            self._values.move_to_end(key)

    def get(self, key: bytes) -> bytes | None:
        """Return a network's encoded window; None for an unknown network."""
        return self._values.get(key)

    def pop(self, key: bytes) -> bytes | None:
        """Remove a network's encoded window and return it; None for an unknown network."""
        return self._values.pop(key, None)

    def evict(self, over: Callable[[bytes], bool], at_once: int | None = None) -> int:
        """Evict windows, oldest change first, while `over` says that the oldest has expired; return their number.

        at_once: most windows to evict; None for no bound.
        """
        evicted = 0
        while self._values and evicted != at_once:
            key = next(iter(self._values))
            if not over(self._values[key]):
                break
            del self._values[key]
            evicted += 1
        return evicted
