"""Submissions this node accepted within the window, by client network.

Packed as 33 bytes each instead of objects: with a hundred thousand networks Python's garbage collector would scan the
objects again and again and stall every request for milliseconds.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from datetime import datetime, timedelta
from struct import Struct
from uuid import UUID

from nigredo.avro.encoders import EPOCH, MILLISECOND
from nigredo.clock import from_ms
from schemas.events import Acceptance

_ACCEPTANCE = Struct(">16sqq?")
"""An accepted submission: lead id, time of acceptance in milliseconds since the epoch, offset, and whether the
submission is durable."""
_UNKNOWN = -1
_AT = Struct(">q")
_AT_BYTE = 16


class LocalAcceptances:
    """The submissions that this node accepted, by the key of their network. Belongs to the event loop."""

    def __init__(self, window: timedelta, networks_max: int) -> None:
        self._window_ms = window // MILLISECOND
        self._networks_max = networks_max
        # In the order of the latest addition. An `OrderedDict`, because a plain dictionary takes ever longer to find
        # its first key the more keys were deleted.
        self._networks: OrderedDict[bytes, bytes] = OrderedDict()

    def __len__(self) -> int:
        return len(self._networks)

    def since(self, key: bytes, offset: int) -> list[Acceptance]:
        """Return a network's acceptances whose offset is past `offset` or not known yet."""
        packed = self._networks.get(key)
        if packed is None:
            return []
        return [
            Acceptance(UUID(bytes=lead_id), from_ms(at_ms))
            for lead_id, at_ms, known, _ in _ACCEPTANCE.iter_unpack(packed)
            if known == _UNKNOWN or known > offset
        ]

    def has(self, key: bytes, lead_id: UUID) -> bool:
        """Say whether a network's submission is durable, in Kafka or in the spool, so that its client may get a 202."""
        return any(durable and one == lead_id.bytes for one, _, _, durable in _ACCEPTANCE.iter_unpack(self._of(key)))

    def add(self, key: bytes, lead_id: UUID, at: datetime) -> None:
        """Add a submission in flight; call `confirm` when it is durable, or `release` when publishing failed.

        A known id can only come again after the limiter refused the earlier submission, so the new entry replaces it.
        """
        at_ms, packed = (at - EPOCH) // MILLISECOND, self._networks.pop(key, b"")
        if packed:
            packed = b"".join(
                one
                for one in _each(packed)
                if at_ms - _at_ms(one) < self._window_ms and not one.startswith(lead_id.bytes)
            )
        self._networks[key] = packed + _ACCEPTANCE.pack(lead_id.bytes, at_ms, _UNKNOWN, False)
        # Each addition evicts up to two old networks, so that hardly more are held than were active in the window.
        for _ in range(2):
            oldest = next(iter(self._networks))
            newest_ms = _at_ms(self._networks[oldest][-_ACCEPTANCE.size :])
            if at_ms - newest_ms < self._window_ms and len(self._networks) <= self._networks_max:
                break
            del self._networks[oldest]

    def confirm(self, key: bytes, lead_id: UUID, offset: int | None) -> None:
        """Mark a submission as durable and record its offset once Kafka reported it. An evicted one is ignored."""
        packed, sought = self._of(key), lead_id.bytes
        for start in range(0, len(packed), _ACCEPTANCE.size):
            if packed.startswith(sought, start):
                _, at_ms, known, _ = _ACCEPTANCE.unpack_from(packed, start)
                confirmed = _ACCEPTANCE.pack(sought, at_ms, known if offset is None else offset, True)
                self._networks[key] = packed[:start] + confirmed + packed[start + _ACCEPTANCE.size :]
                return

    def release(self, key: bytes, lead_id: UUID) -> None:
        """Remove a submission."""
        left = b"".join(one for one in _each(self._of(key)) if not one.startswith(lead_id.bytes))
        if left:
            self._networks[key] = left
        else:
            self._networks.pop(key, None)

    def _of(self, key: bytes) -> bytes:
        return self._networks.get(key, b"")


def _each(packed: bytes) -> Iterator[bytes]:
    return (packed[start : start + _ACCEPTANCE.size] for start in range(0, len(packed), _ACCEPTANCE.size))


def _at_ms(one: bytes) -> int:
    at_ms: int = _AT.unpack_from(one, _AT_BYTE)[0]
    return at_ms
