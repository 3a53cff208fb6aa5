"""Schema pins of a cluster: the schema of each id in its log, stored in the log itself (`nigredo.schemas`).

A pin never changes its meaning, while a registry's database may be lost, restored or renumbered independently.
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
    """One schema id and its schema. `subject` and `version`, the schema's first use, are informational."""

    id: int
    subject: str
    version: int
    """Version of the schema's file; 0 for a schema without a file in this release."""
    text: str

    @property
    def key(self) -> bytes:
        """Record key: the id in decimal digits."""
        return str(self.id).encode()

    @property
    def value(self) -> bytes:
        """Record value: JSON, because a reader must parse it before any schema is known."""
        document = {
            "subject": self.subject,
            "version": self.version,
            "schema": self.text,
            "fingerprint": fingerprint(self.text),
        }
        return json.dumps(document, ensure_ascii=False).encode()

    @property
    def name(self) -> str:
        """The schema's name in messages, such as `nigredo.leads-value v2`."""
        return f"{self.subject} v{self.version}" if self.version else self.subject


class PinBroken(ValueError):
    """A record of `nigredo.schemas` is no pin, or contradicts an earlier pin."""


def pin_of(key: bytes | None, value: bytes | None) -> Pin:
    """Return the pin in a record. Raises PinBroken."""
    try:
        document = json.loads(value or b"")
        pin = Pin(int(key or b""), document["subject"], int(document["version"]), document["schema"])
        if fingerprint(pin.text) != document["fingerprint"]:
            raise PinBroken(f"pin {pin.id} does not have the fingerprint of its schema")
    except (ValueError, KeyError, TypeError) as error:
        raise PinBroken(f"the record is no schema pin: {type(error).__name__}") from error
    return pin


class Pins:
    """The pins of one cluster, added in log order: of two ids for one schema, the later is used for encoding."""

    def __init__(self, pins: Iterable[Pin] = ()) -> None:
        self._by_id: dict[int, Pin] = {}
        self._ids: dict[str, int] = {}
        for pin in pins:
            self.add(pin)

    def __iter__(self) -> Iterator[Pin]:
        """Yield the pins in ascending order of their ids."""
        return (self._by_id[schema_id] for schema_id in sorted(self._by_id))

    def __len__(self) -> int:
        return len(self._by_id)

    def add(self, pin: Pin) -> None:
        """Add the next pin of the log. Raises PinBroken for an id that is pinned to another schema already."""
        known = self._by_id.setdefault(pin.id, pin)
        if not same(known.text, pin.text):
            raise PinBroken(f"id {pin.id} is pinned for {known.name} and for {pin.name}")
        self._ids[fingerprint(pin.text)] = pin.id

    def get(self, schema_id: int) -> Pin | None:
        """Return the pin of an id; None for an id that is not pinned."""
        return self._by_id.get(schema_id)

    def written_id(self, text: str) -> int | None:
        """Return the id with which a schema is encoded; None for a schema that is not pinned."""
        return self._ids.get(fingerprint(text))


def text_of(schema: Any) -> str:
    """Return the canonical text of a schema, so that a registry recognises the schema."""
    return json.dumps(schema, separators=(",", ":"), ensure_ascii=False)


@lru_cache(maxsize=512)
def fingerprint(text: str) -> str:
    """Return a hash of a schema's text that ignores spaces and the order of keys."""
    return hashlib.sha256(json.dumps(json.loads(text), sort_keys=True).encode()).hexdigest()


def same(text: str, other: str) -> bool:
    """Return whether both schemas have the same binary layout, so that bytes of one are read correctly by the other."""
    return text == other or _layout(text) == _layout(other)


@lru_cache(maxsize=512)
def _layout(text: str) -> str:
    try:
        return str(to_parsing_canonical_form(json.loads(text)))
    except Exception:
        # Another kind, such as JSON Schema or Protobuf, is the same as itself only.
        return text


def fits(text: str, payload: bytes) -> bool:
    """Return whether a schema describes all of these bytes, from the first to the last."""
    source = io.BytesIO(payload)
    try:
        fastavro.schemaless_reader(source, _parsed(text), None)
    except Exception:
        # Bytes of another schema make fastavro raise any error.
        return False
    return not source.read(1)


@lru_cache(maxsize=64)
def _parsed(text: str) -> Any:
    return parse_schema(json.loads(text))


def files() -> Mapping[str, list[str]]:
    """Return by schema name the texts of all versions, oldest first; both orders are the order of registration."""
    return {
        name: [text_of(load_schema(name, version)) for version in range(1, newest + 1)]
        for name, newest in NEWEST_VERSION.items()
    }
