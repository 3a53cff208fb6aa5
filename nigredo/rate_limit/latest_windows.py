"""What `nigredo.rate-limits` says of every network, held as it came: for the limiter that loads it, and for ingest.

A million networks at a time, of which few are ever asked for. So a window stays the bytes it is until then, and what
decides about it (who read furthest, when it changed last) is read from them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator

from nigredo.avro.codec import Codec
from nigredo.avro.encoded_window import rank_of
from nigredo.log_position import Mark

OF_NO_RECORD = -1
"""Input offset of a window that `nigredo recover` rewrote: it counts, and proves nothing of the log."""


class LatestWindows:
    """The window of each network that read furthest, in the order of their last change.

    Keys are the records' own. One thread changes them; others may `get` meanwhile.
    """

    def __init__(self, codec: Codec) -> None:
        self._codec = codec
        # An ordered dictionary, since a plain one takes ever longer to find its first key the more were deleted.
        self._values: OrderedDict[bytes, bytes] = OrderedDict()

    def __len__(self) -> int:
        return len(self._values)

    def __iter__(self) -> Iterator[bytes]:
        """Yield the windows, those that changed last first."""
        return reversed(self._values.values())

    def furthest(self) -> Mark | None:
        """Return the record up to which the furthest of them read, its time as a bound; None when none names one.


        Looks at each of them. A window has the key of the record that it came from, and its clock is never behind it.
        """
        ranks = ((rank_of(self._codec, value), key) for key, value in self._values.items())
        rank, key = max(ranks, default=(None, b""))
        return None if rank is None or rank.input_offset < 0 else Mark.of(rank.input_offset, rank.updated_at_ms, key)

    def take(self, key: bytes, value: bytes | None) -> None:
        """Take a record, the topic's next one. Raises Undecodable (what is known stands), RegistryUnavailable."""
        if value is None:
            # Nobody here writes one: it tells no offset, so that a late one could free a network (docs/adr/0014).
            self._values.pop(key, None)
            return
        offset = rank_of(self._codec, value).input_offset
        known = self._values.get(key)
        if known is None:
            self._values[key] = value
        # One that a worker wrote after its partition was given to another one may come late.
        elif rank_of(self._codec, known).input_offset <= offset:
            self._values[key] = value
            self._values.move_to_end(key)

    def get(self, key: bytes) -> bytes | None:
        """Return a network's window."""
        return self._values.get(key)

    def pop(self, key: bytes) -> bytes | None:
        """Return a network's window and let go of it."""
        return self._values.pop(key, None)

    def evict(self, over: Callable[[bytes], bool], at_once: int | None = None) -> int:
        """Let go of windows for as long as the oldest one is over, of no more than `at_once`; return how many went."""
        gone = 0
        while self._values and gone != at_once:
            key = next(iter(self._values))
            if not over(self._values[key]):
                break
            del self._values[key]
            gone += 1
        return gone
