"""Encoders of Avro's primitive values, for the two records that are written too often for fastavro's field look-up.

`Codec.encode` is the reference: tests compare both records with it, also after a change of the schemas.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from functools import lru_cache

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MILLISECOND = timedelta(milliseconds=1)


def number(value: int) -> bytes:
    """Return an Avro int or long: zigzag, in groups of seven bits, lowest first, the top bit set on all but the last.

    value: within 64 signed bits.
    """
    return _SMALL[value] if 0 <= value < len(_SMALL) else _number(value)


def _number(value: int) -> bytes:
    left, groups = value << 1 ^ value >> 63, bytearray()
    while left > 0x7F:
        groups.append(left & 0x7F | 0x80)
        left >>= 7
    groups.append(left)
    return bytes(groups)


_SMALL = [_number(value) for value in range(4096)]
"""Encoded small numbers: lengths of nearly all texts, limits, and the seconds of an hour."""


def text(value: str) -> bytes:
    """Return an Avro string: the length in bytes, and the text in UTF-8."""
    encoded = value.encode()
    length = len(encoded)
    return (_SMALL[length] if length < len(_SMALL) else _number(length)) + encoded


def optional_text(value: str | None) -> bytes:
    """Return an Avro union of null and string: the branch index, then the text; the schemas name null first."""
    return b"\x00" if value is None else b"\x02" + text(value)


def texts(values: Mapping[str, str]) -> bytes:
    """Return an Avro map of strings: entry count, name and value of each entry, and a closing zero."""
    if not values:
        return b"\x00"
    return number(len(values)) + b"".join(text(name) + text(value) for name, value in values.items()) + b"\x00"


# Cached, because under load many records share a millisecond.
@lru_cache(maxsize=256)
def time(value: datetime) -> bytes:
    """Return an Avro timestamp: milliseconds since the epoch."""
    return number((value - EPOCH) // MILLISECOND)
