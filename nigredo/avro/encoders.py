"""Avro's plain values as bytes, for the two records that are written too often to be looked up field by field.

`Codec.encode` says what is right: a test holds both to it, whatever the schemas become.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from functools import lru_cache

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MILLISECOND = timedelta(milliseconds=1)


def number(value: int) -> bytes:
    """Return a number in groups of seven bits, lowest first, each but the last one marked; signs alternate."""
    return _SMALL[value] if 0 <= value < len(_SMALL) else _number(value)


def _number(value: int) -> bytes:
    left, groups = value << 1 ^ value >> 63, bytearray()
    while left > 0x7F:
        groups.append(left & 0x7F | 0x80)
        left >>= 7
    groups.append(left)
    return bytes(groups)


_SMALL = [_number(value) for value in range(4096)]
"""The lengths of nearly all texts, limits, and the seconds of an hour."""


def text(value: str) -> bytes:
    """Return a text in UTF-8 after its length."""
    encoded = value.encode()
    length = len(encoded)
    return (_SMALL[length] if length < len(_SMALL) else _number(length)) + encoded


def optional_text(value: str | None) -> bytes:
    """Return a text, or nothing, after the number of which of the two it is: a schema names null first."""
    return b"\x00" if value is None else b"\x02" + text(value)


def texts(values: Mapping[str, str]) -> bytes:
    """Return a map of texts: how many, each name with its value, and the zero that ends it."""
    if not values:
        return b"\x00"
    return number(len(values)) + b"".join(text(name) + text(value) for name, value in values.items()) + b"\x00"


# Under load many records have the same millisecond.
@lru_cache(maxsize=256)
def time(value: datetime) -> bytes:
    """Return a time as the milliseconds since the epoch."""
    return number((value - EPOCH) // MILLISECOND)
