"""Windows as `nigredo.rate-limits` holds them: of several of one network, the one that read furthest is true.

The limiter loads them and the edge of ingest follows them, hundreds of thousands at a time. Most are never asked for,
so both keep the bytes, and rank them without decoding them.
"""

from __future__ import annotations

from typing import NamedTuple

from schemas.codec import Codec, Undecodable
from schemas.events import RateLimitState
from schemas.topics import RATE_LIMITS

SHORTEST = 13
"""The five bytes before every record, and one for each field."""


class Rank(NamedTuple):
    """How far a window read: the input offset decides, whoever wrote it and whenever."""

    input_offset: int
    updated_at_ms: int


def rank_of(codec: Codec, value: bytes) -> Rank:
    """Return how far an encoded window read. Raises Undecodable, RegistryUnavailable."""
    if len(value) >= SHORTEST and codec.written_as_ours(RATE_LIMITS, value):
        return _last_fields(value)
    state = decoded(codec, value)
    return Rank(state.input_offset, round(state.updated_at.timestamp() * 1000))


def decoded(codec: Codec, value: bytes) -> RateLimitState:
    """Return the window in a value. Raises Undecodable, RegistryUnavailable."""
    state = codec.decode(RATE_LIMITS, value)
    if not isinstance(state, RateLimitState):
        raise Undecodable(f"holds a {type(state).__name__} instead of a window")
    return state


def _last_fields(value: bytes) -> Rank:
    """Read the two fields at the end, `updated_at` and `input_offset`, which are longs.

    Avro writes a number in groups of seven bits, lowest first, and marks each byte but the last one of a number; so the
    byte before a number is never marked where the field before it ends with a number too, or, as `exempt` does, with
    the zero that ends an array.
    """
    numbers, end = [], len(value)
    for _ in range(2):
        start = end - 1
        while value[start - 1] & 0x80:
            start -= 1
        number = 0
        for byte in reversed(value[start:end]):
            number = number << 7 | byte & 0x7F
        numbers.append(number >> 1 ^ -(number & 1))
        end = start
    return Rank(*numbers)
