"""Events to bytes and back: Confluent's wire format (a zero byte, the schema's id in four bytes, Avro)."""

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


_UNKNOWN = (None, object())


class Undecodable(Exception):
    """These bytes are no event of this topic and never will be. The text holds nothing of their content."""


class Schemas(Protocol):
    """What an id means, and which id is written for a schema: the pins of the cluster."""

    def id_of(self, subject: str, schema: Any) -> int:
        """Return the id to write for a schema. Raises SchemaUnknown for one without, DependencyDown."""

    def schema_of(self, schema_id: int) -> Any:
        """Return the schema that an id means. Blocks. Raises SchemaUnknown when there is none, DependencyDown."""


class Codec:
    """Encodes with the schema this release knows, decodes whatever any release wrote.

    `prepare` the topics that are written; reading needs no preparation. A schema id that was not met yet costs a
    look-up, which blocks: on an event loop ask `is_cached` first, and decode in a thread if it is not. Thread-safe.
    """

    def __init__(self, schemas: Schemas) -> None:
        self._schemas = schemas
        self._ids: dict[str, int] = {}
        self._readers: dict[str, Any] = {}
        self._writers: dict[int, Any] = {}
        self._pairs: dict[tuple[int, str], tuple[Any, Any]] = {}

    def prepare(self, topics: Iterable[str]) -> None:
        """Learn the schema ids of the topics that will be encoded for.

        Raises DependencyDown or SchemaUnknown; may be called again until it succeeds.
        """
        for topic in topics:
            if topic not in self._ids:
                spec = spec_of(topic)
                self._ids[topic] = self._schemas.id_of(spec.subject, load_schema(spec.schema))

    def renumber(self, topic: str, schema_id: int) -> None:
        """Write from now on under another id of the schema: that of a cluster which was made anew."""
        self._ids[topic] = schema_id

    def prefix(self, topic: str) -> bytes:
        """Return how a value on `topic`, which was prepared, begins."""
        return PREFIX.pack(MAGIC, self._ids[topic])

    def encode(self, topic: str, event: Event) -> bytes:
        """Return the record value of `event` on `topic`, which was prepared."""
        schema = self._ours(topic)
        name, plain = type(event).__name__, _as_plain(event)
        out = io.BytesIO()
        out.write(self.prefix(topic))
        fastavro.schemaless_writer(out, schema, (f"nigredo.{name}", plain) if isinstance(schema, list) else plain)
        return out.getvalue()

    def decode(self, topic: str, value: bytes) -> Event:
        """Return the event in a record value of `topic`.

        Raises Undecodable when it never can be, DependencyDown when its schema has to be looked up and cannot be at
        present: then wait, the record may be perfectly good.
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
            # fastavro raises whatever the broken bytes lead to, from EOFError to struct.error; its text may quote them.
            raise Undecodable(f"does not fit schema {schema_id}: {type(error).__name__}") from None

    def is_cached(self, value: bytes) -> bool:
        """Say whether `decode` can tell what these bytes are without a look-up."""
        return len(value) < PREFIX.size or value[0] != MAGIC or PREFIX.unpack_from(value)[1] in self._writers

    def has_current_schema(self, topic: str, value: bytes) -> bool:
        """Say whether a value has the very layout that this release writes. False until one like it was decoded."""
        if len(value) < PREFIX.size:
            return False
        magic, schema_id = PREFIX.unpack_from(value)
        return magic == MAGIC and self._pairs.get((schema_id, topic), _UNKNOWN)[1] is None

    def _pair(self, schema_id: int, topic: str) -> tuple[Any, Any]:
        """Return the writer's schema, and ours if it is another: fastavro would compare them whole at every record."""
        writer, ours = self._written_with(schema_id), self._ours(topic)
        self._pairs[schema_id, topic] = (writer, None if writer == ours else ours)
        return self._pairs[schema_id, topic]

    def _written_with(self, schema_id: int) -> Any:
        if schema_id not in self._writers:
            try:
                schema = self._schemas.schema_of(schema_id)
            except SchemaUnknown as error:
                raise Undecodable(f"schema id {schema_id}: {error}") from error
            try:
                self._writers[schema_id] = parse_schema(schema)
            except Exception as error:
                # A registry holds other kinds too, such as JSON Schema, which parse as whatever they happen to be.
                raise Undecodable(f"schema {schema_id} is no Avro schema: {type(error).__name__}") from None
        return self._writers[schema_id]

    def _ours(self, topic: str) -> Any:
        if topic not in self._readers:
            self._readers[topic] = parse_schema(load_schema(spec_of(topic).schema))
        return self._readers[topic]


@cache
def _fields_of(cls: type) -> tuple[tuple[str, type | None, bool], ...]:
    """Return (name, nested class or None, whether it is a tuple of them) of each field; once a class."""
    hints = get_type_hints(cls)
    described = []
    for field in dataclasses.fields(cls):
        hint = hints[field.name]
        many = get_origin(hint) is tuple
        inner = get_args(hint)[0] if many else hint
        described.append((field.name, inner if dataclasses.is_dataclass(inner) else None, many))
    return tuple(described)  # type: ignore[arg-type] # a dataclass's type is one


def _as_plain(event: Any) -> dict[str, Any]:
    names, values_of, nested = _reading(type(event))  # type: ignore[arg-type] # a class can be hashed
    plain = dict(zip(names, values_of(event), strict=True))
    for name, many in nested:
        value = plain[name]
        plain[name] = [_as_plain(item) for item in value] if many else _as_plain(value)
    return plain


@cache
def _reading(cls: type) -> tuple[tuple[str, ...], Callable[[Any], tuple[Any, ...]], tuple[tuple[str, bool], ...]]:
    """Return the names of a class's fields, what reads them all at once, and which are events (or tuples of them)."""
    fields = _fields_of(cls)
    names = tuple(name for name, _, _ in fields)
    nested = tuple((name, many) for name, inner, many in fields if inner is not None)
    # Of a single name it returns the value itself.
    values_of = attrgetter(*names) if len(names) > 1 else lambda event: (getattr(event, names[0]),)
    return names, values_of, nested


def _from_plain(cls: type, plain: dict[str, Any]) -> Any:
    for name, nested, many in _fields_of(cls):
        if nested is not None:
            value = plain[name]
            plain[name] = tuple(_from_plain(nested, item) for item in value) if many else _from_plain(nested, value)
    return cls(**plain)
