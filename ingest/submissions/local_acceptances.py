"""What this node took of every network within the window.

A few bytes a submission and no objects: those of a hundred thousand networks would be looked through again and again by
Python's search for garbage, for milliseconds in which nobody is answered.
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

_ONE = Struct(">16sqq?")
"""A submission: its id, when it was taken in milliseconds since the epoch, its offset, and whether it is durable."""
_UNKNOWN = -1
_AT = Struct(">q")
_AT_PLACE = 16


class LocalAcceptances:
    """The submissions that this node accepted, by the key of their network. Belongs to the event loop."""

    def __init__(self, window: timedelta, networks_max: int) -> None:
        self._window_ms = window // MILLISECOND
        self._networks_max = networks_max
        # In the order in which something was last added. Not a plain dictionary, which takes ever longer to find its
        # first key the more of them were deleted.
        self._networks: OrderedDict[bytes, bytes] = OrderedDict()

    def __len__(self) -> int:
        return len(self._networks)

    def since(self, key: bytes, offset: int) -> list[Acceptance]:
        """Return what of a network stands behind an offset, or nobody knows where."""
        taken = self._networks.get(key)
        if taken is None:
            return []
        return [
            Acceptance(UUID(bytes=lead_id), from_ms(at_ms))
            for lead_id, at_ms, known, _ in _ONE.iter_unpack(taken)
            if known == _UNKNOWN or known > offset
        ]

    def has(self, key: bytes, lead_id: UUID) -> bool:
        """Say whether Kafka has a submission of a network, or the spool: its sender may be told so."""
        return any(durable and one == lead_id.bytes for one, _, _, durable in _ONE.iter_unpack(self._of(key)))

    def add(self, key: bytes, lead_id: UUID, at: datetime) -> None:
        """Remember that a submission is on its way; `keep` it when it is durable, or `forget` it when it failed.

        One of the same id was refused by the limiter meanwhile, else this were a repeat: only the new one is known.
        """
        at_ms, taken = (at - EPOCH) // MILLISECOND, self._networks.pop(key, b"")
        if taken:
            taken = b"".join(
                one
                for one in _each(taken)
                if at_ms - _at_ms(one) < self._window_ms and not one.startswith(lead_id.bytes)
            )
        self._networks[key] = taken + _ONE.pack(lead_id.bytes, at_ms, _UNKNOWN, False)
        # Each new one lets go of up to two old ones, so that there are never more than counted within the window.
        for _ in range(2):
            oldest = next(iter(self._networks))
            newest_ms = _at_ms(self._networks[oldest][-_ONE.size :])
            if at_ms - newest_ms < self._window_ms and len(self._networks) <= self._networks_max:
                break
            del self._networks[oldest]

    def keep(self, key: bytes, lead_id: UUID, offset: int | None) -> None:
        """Note that a submission is durable, and its offset as soon as Kafka told it; nothing where it is forgotten."""
        taken, sought = self._of(key), lead_id.bytes
        for start in range(0, len(taken), _ONE.size):
            if taken.startswith(sought, start):
                _, at_ms, known, _ = _ONE.unpack_from(taken, start)
                told = _ONE.pack(sought, at_ms, known if offset is None else offset, True)
                self._networks[key] = taken[:start] + told + taken[start + _ONE.size :]
                return

    def forget(self, key: bytes, lead_id: UUID) -> None:
        """Let go of a submission."""
        left = b"".join(one for one in _each(self._of(key)) if not one.startswith(lead_id.bytes))
        if left:
            self._networks[key] = left
        else:
            self._networks.pop(key, None)

    def _of(self, key: bytes) -> bytes:
        return self._networks.get(key, b"")


def _each(taken: bytes) -> Iterator[bytes]:
    return (taken[start : start + _ONE.size] for start in range(0, len(taken), _ONE.size))


def _at_ms(one: bytes) -> int:
    at_ms: int = _AT.unpack_from(one, _AT_PLACE)[0]
    return at_ms
