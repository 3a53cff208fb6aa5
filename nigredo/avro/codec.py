"""Avro codec of events, in Confluent's wire format: a zero byte, the schema id in four bytes, the Avro body."""

from __future__ import annotations

import dataclasses
import io
import struct
from collections.abc import Callable, Iterable
from functools import cache
from operator import attrgetter
from typing import Any, Protocol, get_args, get_origin, get_type_hints

import fastavro
from fastavro.schema import parse_schema

from nigredo.avro.registry import SchemaUnknown
from schemas import events
from schemas.events import Event
from schemas.topics import load_schema, spec_of

MAGIC = 0
PREFIX = struct.Struct(">bI")

_NEVER_DECODED = (None, object())


class Undecodable(Exception):
    """The bytes are no event of this topic, now or later: dead-letter the record. The text quotes none of the bytes."""


class Schemas(Protocol):
    """Mapping between schema ids and schemas, as the cluster's pins define it."""

    def id_of(self, subject: str, schema: Any) -> int:
        """Return the id to write for a schema. Raises SchemaUnknown when the schema has no id, DependencyDown."""

    def schema_of(self, schema_id: int) -> Any:
        """Return the schema of an id. Blocks. Raises SchemaUnknown when the id has no schema, DependencyDown."""


class Codec:
    """Encodes with this release's schemas, and decodes the records of every release.

    Call `prepare` for topics to be encoded; decoding needs no preparation. A schema id that is not cached needs a
    look-up, which blocks: on an event loop check `is_cached` first, and decode in a thread if it is not. Thread-safe.
    """

    def __init__(self, schemas: Schemas) -> None:
        self._schemas = schemas
        self._ids: dict[str, int] = {}
        self._readers: dict[str, Any] = {}
        self._writers: dict[int, Any] = {}
        self._pairs: dict[tuple[int, str], tuple[Any, Any]] = {}

    def prepare(self, topics: Iterable[str]) -> None:
        """Look up and cache the schema ids of the topics to be encoded.

        Raises DependencyDown or SchemaUnknown; safe to repeat until it succeeds.
        """
        for topic in topics:
            if topic not in self._ids:
                spec = spec_of(topic)
                self._ids[topic] = self._schemas.id_of(spec.subject, load_schema(spec.schema))

    def renumber(self, topic: str, schema_id: int) -> None:
        """Encode from now on with another id of the topic's schema, after the cluster was created again."""
        self._ids[topic] = schema_id

    def prefix(self, topic: str) -> bytes:
        """Return the first five bytes of every value of `topic`, which must be prepared."""
        return PREFIX.pack(MAGIC, self._ids[topic])

    def encode(self, topic: str, event: Event) -> bytes:
        """Return the record value of `event` for `topic`, which must be prepared."""
        schema = self._ours(topic)
        name, plain = type(event).__name__, _as_plain(event)
        out = io.BytesIO()
        out.write(self.prefix(topic))
        fastavro.schemaless_writer(out, schema, (f"nigredo.{name}", plain) if isinstance(schema, list) else plain)
        return out.getvalue()

    def decode(self, topic: str, value: bytes) -> Event:
        """Return the event in a record value of `topic`.

        Raises Undecodable when the value can never be decoded, and DependencyDown when its schema cannot be looked up
        at present: retry then, because the record may be good.
        """
        if len(value) < PREFIX.size:
            raise Undecodable("shorter than the five bytes that begin every Avro record")
        magic, schema_id = PREFIX.unpack_from(value)
        if magic != MAGIC:
            raise Undecodable("does not begin with the zero byte of Confluent's wire format")
        ours = self._ours(topic)
        writer, reader = self._pairs.get((schema_id, topic)) or self._pair(schema_id, topic)
        source = io.BytesIO(value)
        source.seek(PREFIX.size)
        try:
            plain: Any = fastavro.schemaless_reader(source, writer, reader, return_record_name=isinstance(ours, list))
            if source.read(1):
                raise Undecodable(f"goes on after the end of schema {schema_id}")
            name, plain = plain if isinstance(ours, list) else (ours["name"], plain)
            event: Event = _from_plain(getattr(events, name.removeprefix("nigredo.")), plain)
            return event
        except Undecodable:
            raise
        except Exception as error:
            # Broken bytes make fastavro raise anything from EOFError to struct.error, and its text may quote them.
            raise Undecodable(f"does not fit schema {schema_id}: {type(error).__name__}") from None

    def is_cached(self, value: bytes) -> bool:
        """Return whether `decode` needs no look-up for these bytes."""
        return len(value) < PREFIX.size or value[0] != MAGIC or PREFIX.unpack_from(value)[1] in self._writers

    def has_current_schema(self, topic: str, value: bytes) -> bool:
        """Return whether a value has this release's schema. False until a value with the same id was decoded."""
        if len(value) < PREFIX.size:
            return False
        magic, schema_id = PREFIX.unpack_from(value)
        return magic == MAGIC and self._pairs.get((schema_id, topic), _NEVER_DECODED)[1] is None

    def _pair(self, schema_id: int, topic: str) -> tuple[Any, Any]:
        """Return writer schema and reader schema, the latter None if equal: fastavro would compare both per record."""
        writer, ours = self._writer_schema(schema_id), self._ours(topic)
        self._pairs[schema_id, topic] = (writer, None if writer == ours else ours)
        return self._pairs[schema_id, topic]

    def _writer_schema(self, schema_id: int) -> Any:
        if schema_id not in self._writers:
            try:
                schema = self._schemas.schema_of(schema_id)
            except SchemaUnknown as error:
                raise Undecodable(f"schema id {schema_id}: {error}") from error
            try:
                self._writers[schema_id] = parse_schema(schema)
            except Exception as error:
                # A registry also holds other kinds, such as JSON Schema, on which the Avro parser raises any error.
                raise Undecodable(f"schema {schema_id} is no Avro schema: {type(error).__name__}") from None
        return self._writers[schema_id]

    def _ours(self, topic: str) -> Any:
        if topic not in self._readers:
            self._readers[topic] = parse_schema(load_schema(spec_of(topic).schema))
        return self._readers[topic]


@cache
def _fields_of(cls: type) -> tuple[tuple[str, type | None, bool], ...]:
    """Return each field's (name, nested event class or None, whether the field is a tuple of them), cached by class."""
    hints = get_type_hints(cls)
    described = []
    for field in dataclasses.fields(cls):
        hint = hints[field.name]
        many = get_origin(hint) is tuple
        inner = get_args(hint)[0] if many else hint
        described.append((field.name, inner if dataclasses.is_dataclass(inner) else None, many))
    return tuple(described)  # type: ignore[arg-type] # a dataclass's type is one


def _as_plain(event: Any) -> dict[str, Any]:
    names, values_of, nested = _plain_reader(type(event))  # type: ignore[arg-type] # a class can be hashed
    plain = dict(zip(names, values_of(event), strict=True))
    for name, many in nested:
        value = plain[name]
        plain[name] = [_as_plain(item) for item in value] if many else _as_plain(value)
    return plain


@cache
def _plain_reader(cls: type) -> tuple[tuple[str, ...], Callable[[Any], tuple[Any, ...]], tuple[tuple[str, bool], ...]]:
    """Return a class's field names, a getter of all fields at once, and (name, is a tuple) of each nested event."""
    fields = _fields_of(cls)
    names = tuple(name for name, _, _ in fields)
    nested = tuple((name, many) for name, inner, many in fields if inner is not None)
    # `attrgetter` of a single name returns the bare value instead of a tuple.
    values_of = attrgetter(*names) if len(names) > 1 else lambda event: (getattr(event, names[0]),)
    return names, values_of, nested


def _from_plain(cls: type, plain: dict[str, Any]) -> Any:
    for name, nested, many in _fields_of(cls):
        if nested is not None:
            value = plain[name]
            plain[name] = tuple(_from_plain(nested, item) for item in value) if many else _from_plain(nested, value)
    return cls(**plain)
