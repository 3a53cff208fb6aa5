"""Fast Avro encoder and ranking of windows, the records of `nigredo.rate-limits`.

Of several windows of one network, the one with the highest input offset is valid. The limiter loads and ingest's edge
limiter follows hundreds of thousands of windows, of which most are never used; so both store the encoded bytes and rank
them without decoding. The limiter writes one window per network and batch: encoding them by fastavro, which looks up
every field, was its largest cost.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from nigredo.avro.codec import PREFIX, Codec, Undecodable
from nigredo.avro.encoders import number, text, time
from schemas.events import Acceptance, RateLimitState
from schemas.topics import RATE_LIMITS

SHORTEST = 13
"""Least length of a value: the five bytes of the prefix, and one byte per field."""
SMALLEST_TIME = 2**33
"""Least encoded time. No count of refusals is as large, so a truncated value is not taken for a complete one."""


class Rank(NamedTuple):
    """Age order of a network's windows: the higher input offset wins, whichever process wrote the window and when."""

    input_offset: int
    updated_at_ms: int


def encode_window(codec: Codec, state: RateLimitState) -> bytes:
    """Return the same bytes as `Codec.encode`; a test compares the two, also after a change of the schema."""
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
    """Return an Avro array: item count, id (36 characters) and time of each item, and a closing zero."""
    if not acceptances:
        return b"\x00"
    items = [b"\x48" + str(acceptance.id).encode() + time(acceptance.at) for acceptance in acceptances]
    return number(len(items)) + b"".join(items) + b"\x00"


def rank_of(codec: Codec, value: bytes) -> Rank:
    """Return the rank of an encoded window. Raises Undecodable, DependencyDown."""
    if len(value) >= SHORTEST and codec.has_current_schema(RATE_LIMITS, value) and (rank := _last_fields(value)):
        return rank
    state = decode_window(codec, value)
    return Rank(state.input_offset, round(state.updated_at.timestamp() * 1000))


def decode_window(codec: Codec, value: bytes) -> RateLimitState:
    """Return the window in a record value. Raises Undecodable, DependencyDown."""
    state = codec.decode(RATE_LIMITS, value)
    if not isinstance(state, RateLimitState):
        raise Undecodable(f"holds a {type(state).__name__} instead of a window")
    return state


def _last_fields(value: bytes) -> Rank | None:
    """Read the last two fields, the longs `updated_at` and `input_offset`, from the end. None for a truncated value.

    Avro writes a long in groups of seven bits, lowest first, and sets the top bit of every byte but the last. Read
    backwards, a long therefore continues while the byte before has its top bit set, and `updated_at` starts after the
    zero that closes the preceding array. The loop is written out twice because a start reads a million values.
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
