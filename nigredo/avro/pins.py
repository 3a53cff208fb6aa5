"""Schema pins of a cluster: what each schema id in its log means, kept in the log itself (`nigredo.schemas`).

A pin never changes its meaning. A registry's database has a life of its own, and may say something else tomorrow.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import fastavro
from fastavro.schema import parse_schema, to_parsing_canonical_form

from schemas.topics import NEWEST_VERSION, load_schema


@dataclass(frozen=True, slots=True)
class Pin:
    """One id and the schema that it means. `subject` and `version` are for people: the first use of the schema."""

    id: int
    subject: str
    version: int
    """Of the schema's file; 0 for a schema that this release has no file of."""
    text: str

    @property
    def key(self) -> bytes:
        """The record's key."""
        return str(self.id).encode()

    @property
    def value(self) -> bytes:
        """The record's value: JSON, since a reader must understand it before any schema is known."""
        document = {
            "subject": self.subject,
            "version": self.version,
            "schema": self.text,
            "fingerprint": fingerprint(self.text),
        }
        return json.dumps(document, ensure_ascii=False).encode()

    @property
    def name(self) -> str:
        """The schema in the words of a message."""
        return f"{self.subject} v{self.version}" if self.version else self.subject


class PinBroken(ValueError):
    """A record of the pins is none."""


def pin_of(key: bytes | None, value: bytes | None) -> Pin:
    """Return the pin in a record. Raises PinBroken."""
    try:
        document = json.loads(value or b"")
        pin = Pin(int(key or b""), document["subject"], int(document["version"]), document["schema"])
        if fingerprint(pin.text) != document["fingerprint"]:
            raise PinBroken(f"pin {pin.id} does not have the fingerprint of its schema")
    except (ValueError, KeyError, TypeError) as error:
        raise PinBroken(f"a record of the pins is no pin: {type(error).__name__}") from error
    return pin


class Pins:
    """The pins of one cluster, in the order of the log: of two ids for one schema the later one is written."""

    def __init__(self, pins: Iterable[Pin] = ()) -> None:
        self._by_id: dict[int, Pin] = {}
        self._ids: dict[str, int] = {}
        for pin in pins:
            self.add(pin)

    def __iter__(self) -> Iterator[Pin]:
        """Yield the pins by their ids."""
        return (self._by_id[schema_id] for schema_id in sorted(self._by_id))

    def __len__(self) -> int:
        return len(self._by_id)

    def add(self, pin: Pin) -> None:
        """Take the next pin of the log. Raises PinBroken for an id that means another schema already."""
        known = self._by_id.setdefault(pin.id, pin)
        if not same(known.text, pin.text):
            raise PinBroken(f"id {pin.id} is pinned for {known.name} and for {pin.name}")
        self._ids[fingerprint(pin.text)] = pin.id

    def get(self, schema_id: int) -> Pin | None:
        """Return the pin of an id."""
        return self._by_id.get(schema_id)

    def written_id(self, text: str) -> int | None:
        """Return the id that is written for a schema; None for one that is not pinned."""
        return self._ids.get(fingerprint(text))


def text_of(schema: Any) -> str:
    """Return one text for one schema, so that a registry finds it again."""
    return json.dumps(schema, separators=(",", ":"), ensure_ascii=False)


@lru_cache(maxsize=512)
def fingerprint(text: str) -> str:
    """Return what is equal for texts of one schema, whatever their spaces and the order of their keys."""
    return hashlib.sha256(json.dumps(json.loads(text), sort_keys=True).encode()).hexdigest()


def same(text: str, other: str) -> bool:
    """Say whether bytes written by one schema are read by the other as what they are."""
    return text == other or _layout(text) == _layout(other)


@lru_cache(maxsize=512)
def _layout(text: str) -> str:
    try:
        return str(to_parsing_canonical_form(json.loads(text)))
    except Exception:
        # Another kind, such as JSON Schema or Protobuf: equal to itself alone.
        return text


def fits(text: str, payload: bytes) -> bool:
    """Say whether a schema describes these bytes from their beginning to their end."""
    source = io.BytesIO(payload)
    try:
        fastavro.schemaless_reader(source, _parsed(text), None)
    except Exception:
        # fastavro raises whatever bytes of another schema lead to.
        return False
    return not source.read(1)


@lru_cache(maxsize=64)
def _parsed(text: str) -> Any:
    return parse_schema(json.loads(text))


def files() -> Mapping[str, list[str]]:
    """Return the texts of every version of each schema, oldest first, in the one order of registration."""
    return {
        name: [text_of(load_schema(name, version)) for version in range(1, newest + 1)]
        for name, newest in NEWEST_VERSION.items()
    }
