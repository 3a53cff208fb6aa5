"""Windows as `nigredo.rate-limits` holds them: of several of one network, the one that read furthest is true.

The limiter loads them and the edge of ingest follows them, hundreds of thousands at a time. Most are never asked for,
so both keep the bytes, and rank them without decoding them. The limiter writes one for every network of every batch,
which was its largest expense, so they are encoded here and not field by field by a library that looks each up.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from schemas.codec import Codec, Undecodable
from schemas.events import Acceptance, RateLimitState
from schemas.primitives import number, text, time
from schemas.topics import RATE_LIMITS

SHORTEST = 13
"""The five bytes before every record, and one for each field."""


class Rank(NamedTuple):
    """How far a window read: the input offset decides, whoever wrote it and whenever."""

    input_offset: int
    updated_at_ms: int


def encoded(codec: Codec, state: RateLimitState) -> bytes:
    """Return what `Codec.encode` would; a test holds the two together, whatever the schema becomes."""
    return b"".join(
        (
            codec.prefix(RATE_LIMITS),
            text(state.client_network),
            number(state.limit),
            number(state.window_s),
            _acceptances(state.accepted),
            number(state.refused),
            _acceptances(state.exempt),
            time(state.updated_at),
            number(state.input_offset),
        )
    )


def _acceptances(acceptances: Sequence[Acceptance]) -> bytes:
    """Return an array: its length, an id of 36 letters and a time each, and the zero that ends it."""
    if not acceptances:
        return b"\x00"
    items = [b"\x48" + str(acceptance.id).encode() + time(acceptance.at) for acceptance in acceptances]
    return number(len(items)) + b"".join(items) + b"\x00"


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
        found = 0
        for byte in reversed(value[start:end]):
            found = found << 7 | byte & 0x7F
        numbers.append(found >> 1 ^ -(found & 1))
        end = start
    return Rank(*numbers)
