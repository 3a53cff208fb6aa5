"""Windows as `nigredo.rate-limits` holds them: of several of one network, the one that read furthest is true.

The limiter loads them and the edge of ingest follows them, hundreds of thousands at a time. Most are never asked for,
so both keep the bytes, and rank them without decoding them. The limiter writes one for every network of every batch,
which was its largest expense, so they are encoded here and not field by field by a library that looks each up.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from nigredo.avro.codec import PREFIX, Codec, Undecodable
from nigredo.avro.encoders import number, text, time
from schemas.events import Acceptance, RateLimitState
from schemas.topics import RATE_LIMITS

SHORTEST = 13
"""The five bytes before every record, and one for each field."""
SMALLEST_TIME = 2**33
"""As Avro writes it; no count of refusals is as great, so a value that was cut off is not taken for a whole one."""


class Rank(NamedTuple):
    """How far a window read: the input offset decides, whoever wrote it and whenever."""

    input_offset: int
    updated_at_ms: int


def encode_window(codec: Codec, state: RateLimitState) -> bytes:
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
    if len(value) >= SHORTEST and codec.has_current_schema(RATE_LIMITS, value) and (rank := _last_fields(value)):
        return rank
    state = decode_window(codec, value)
    return Rank(state.input_offset, round(state.updated_at.timestamp() * 1000))


def decode_window(codec: Codec, value: bytes) -> RateLimitState:
    """Return the window in a value. Raises Undecodable, RegistryUnavailable."""
    state = codec.decode(RATE_LIMITS, value)
    if not isinstance(state, RateLimitState):
        raise Undecodable(f"holds a {type(state).__name__} instead of a window")
    return state


def _last_fields(value: bytes) -> Rank | None:
    """Read the two fields at the end, `updated_at` and `input_offset`, which are longs. None if that is not their end.

    Avro writes a number in groups of seven bits, lowest first, and marks each byte but the last one of a number. So
    from the end a number goes on to its next group as long as that is marked, and `updated_at` begins after the zero
    that ends the array before it. Written out twice: a million of these are read while a process starts.
    """
    at = len(value) - 1
    offset = value[at]
    at -= 1
    while (byte := value[at]) & 0x80:
        offset = offset << 7 | byte & 0x7F
        at -= 1
    updated = byte
    at -= 1
    while (byte := value[at]) & 0x80:
        updated = updated << 7 | byte & 0x7F
        at -= 1
    if byte or updated < SMALLEST_TIME or at < PREFIX.size or value[-1] & 0x80:
        return None
    return Rank(offset >> 1 ^ -(offset & 1), updated >> 1 ^ -(updated & 1))
