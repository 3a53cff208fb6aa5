"""Fast encoder and ranking of windows: their results equal the codec's, for every possible window."""

from __future__ import annotations

import io
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import fastavro
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nigredo.avro.codec import PREFIX, Codec, Undecodable
from nigredo.avro.encoded_window import decode_window, encode_window, rank_of
from nigredo.avro.registry import SchemaUnknown
from schemas.events import Acceptance, RateLimitState
from schemas.topics import NEWEST_VERSION, RATE_LIMITS, load_schema

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
times_ms = st.integers(0, 2**42)


class OneSchema:
    """A registry with the versions of the one schema of these tests; an id is a version number."""

    def id_of(self, *_: object) -> int:
        return NEWEST_VERSION["rate-limits"]

    def schema_of(self, schema_id: int) -> Any:
        if schema_id > NEWEST_VERSION["rate-limits"]:
            raise SchemaUnknown
        return load_schema("rate-limits", schema_id)


def a_codec() -> Codec:
    codec = Codec(OneSchema())
    codec.prepare([RATE_LIMITS])
    return codec


acceptances = st.lists(
    st.builds(Acceptance, st.uuids(), times_ms.map(lambda ms: EPOCH + timedelta(milliseconds=ms))), max_size=3
).map(tuple)
states = st.builds(
    RateLimitState,
    client_network=st.sampled_from(["192.0.2.1", "2001:db8:ffff:ffff::/64"]),
    limit=st.integers(1, 200),
    window_s=st.integers(1, 86_400),
    accepted=acceptances,
    refused=st.integers(0, 2**31 - 1),
    exempt=acceptances,
    updated_at=(times_ms | st.integers(2**40, 2**41)).map(lambda ms: EPOCH + timedelta(milliseconds=ms)),
    input_offset=st.integers(-1, 2**62),
)


@given(states)
def test_a_window_is_encoded_as_its_schema_says(state: RateLimitState) -> None:
    codec = a_codec()

    assert encode_window(codec, state) == codec.encode(RATE_LIMITS, state)


@given(states)
def test_the_rank_read_from_the_end_equals_the_decoded_one(state: RateLimitState) -> None:
    codec = a_codec()
    value = codec.encode(RATE_LIMITS, state)

    by_decoding = rank_of(codec, value)
    assert codec.has_current_schema(RATE_LIMITS, value)
    by_its_end = rank_of(codec, value)

    assert by_its_end == by_decoding == (state.input_offset, (state.updated_at - EPOCH) // timedelta(milliseconds=1))
    assert decode_window(codec, value) == state


@given(states)
def test_a_window_of_the_release_before_ranks_the_same_and_knows_nothing_of_who_was_exempt(
    state: RateLimitState,
) -> None:
    codec, older = a_codec(), replace(state, exempt=())
    plain = asdict(older) | {"accepted": [asdict(acceptance) for acceptance in older.accepted]}
    out = io.BytesIO(PREFIX.pack(0, 1))
    out.seek(0, io.SEEK_END)
    fastavro.schemaless_writer(out, fastavro.parse_schema(load_schema("rate-limits", 1)), plain)
    value = out.getvalue()

    for _ in range(2):  # The second time its schema is cached.
        assert rank_of(codec, value) == rank_of(codec, codec.encode(RATE_LIMITS, state))
        assert not codec.has_current_schema(RATE_LIMITS, value)
    assert decode_window(codec, value) == older


@given(states)
def test_a_truncated_window_is_undecodable_wherever_it_was_cut(state: RateLimitState) -> None:
    codec = a_codec()
    value = codec.encode(RATE_LIMITS, state)
    rank_of(codec, value)
    assert codec.has_current_schema(RATE_LIMITS, value)

    for end in range(len(value)):
        with pytest.raises(Undecodable):
            rank_of(codec, value[:end])


@pytest.mark.parametrize("value", [b"", b"\x00", b"\x01\x00\x00\x00\x07abc", b"\x00\x00\x00\x00\x07"])
def test_bytes_that_are_no_window_are_undecodable(value: bytes) -> None:
    codec = a_codec()
    assert not codec.has_current_schema(RATE_LIMITS, value)
    with pytest.raises(Undecodable):
        rank_of(codec, value)


def test_the_greater_input_offset_ranks_higher_whatever_the_clock_says() -> None:
    codec = a_codec()
    early = RateLimitState("n", 1, 1, (Acceptance(UUID(int=1), EPOCH),), 0, EPOCH + timedelta(days=9), 5)
    late = RateLimitState("n", 1, 1, (), 0, EPOCH, 6)

    assert rank_of(codec, codec.encode(RATE_LIMITS, late)) > rank_of(codec, codec.encode(RATE_LIMITS, early))
