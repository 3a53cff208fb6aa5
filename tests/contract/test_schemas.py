"""The schema files are the contract with readers outside: documented, evolvable, and mirrored by our own events."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import avro.schema
import pytest
from avro.compatibility import ReaderWriterCompatibilityChecker, SchemaCompatibilityType

from schemas import events
from schemas.topics import NEWEST_VERSION, TOPICS, load_schema

FILES = sorted(Path(events.__file__).parent.glob("*.avsc"))
VERSIONS = {
    name: sorted(int(file.suffixes[0].removeprefix(".v")) for file in FILES if file.name.split(".")[0] == name)
    for name in NEWEST_VERSION
}


def records(schema: Any) -> Iterator[dict[str, Any]]:
    """Yield every record type within a schema."""
    if isinstance(schema, list):
        for branch in schema:
            yield from records(branch)
    elif isinstance(schema, dict):
        if schema["type"] == "record":
            yield schema
            for field in schema["fields"]:
                yield from records(field["type"])
        elif isinstance(schema["type"], dict | list):
            yield from records(schema["type"])
        for inside in ("items", "values"):
            if inside in schema:
                yield from records(schema[inside])


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_every_record_and_field_says_what_it_is(file: Path) -> None:
    for record in records(json.loads(file.read_text())):
        assert len(record["doc"]) > 10
        for field in record["fields"]:
            assert len(field["doc"]) > 10, f"{record['name']}.{field['name']}"


@pytest.mark.parametrize("name", NEWEST_VERSION)
def test_our_events_mirror_the_newest_schema_field_by_field(name: str) -> None:
    for record in records(load_schema(name)):
        mirror = getattr(events, record["name"])
        assert [field["name"] for field in record["fields"]] == [field.name for field in dataclasses.fields(mirror)]


@pytest.mark.parametrize("name", NEWEST_VERSION)
def test_any_version_reads_any_other(name: str) -> None:
    """FULL_TRANSITIVE, as the registry is told to enforce it."""
    assert VERSIONS[name] == list(range(1, NEWEST_VERSION[name] + 1))
    for reader_version in VERSIONS[name]:
        for writer_version in VERSIONS[name]:
            reader = avro.schema.make_avsc_object(load_schema(name, reader_version))
            writer = avro.schema.make_avsc_object(load_schema(name, writer_version))
            found = ReaderWriterCompatibilityChecker().get_compatibility(reader, writer)
            assert found.compatibility is SchemaCompatibilityType.compatible, (reader_version, writer_version)


def test_the_check_above_notices_a_field_without_a_default() -> None:
    """The checker itself is trusted only because it refuses what must be refused."""
    grown = load_schema("audit")
    grown["fields"].append({"name": "new", "type": "string", "doc": "A field that old records do not have."})

    found = ReaderWriterCompatibilityChecker().get_compatibility(
        avro.schema.make_avsc_object(grown), avro.schema.make_avsc_object(load_schema("audit"))
    )

    assert found.compatibility is SchemaCompatibilityType.incompatible


def test_personal_data_is_in_the_contact_and_nowhere_else() -> None:
    for name in NEWEST_VERSION:
        for record in records(load_schema(name)):
            if record["name"] != "Contact":
                assert not {field["name"] for field in record["fields"]} & {"email", "message", "extra"}


def test_every_topic_has_a_schema_and_every_schema_file_a_version() -> None:
    assert {spec.schema for spec in TOPICS.values()} | {"webhook-retries"} == set(NEWEST_VERSION)
    assert {file.name for file in FILES} == {f"{name}.v{v}.avsc" for name, all_of in VERSIONS.items() for v in all_of}


def test_every_event_belongs_to_a_schema() -> None:
    declared = {record["name"] for name in NEWEST_VERSION for record in records(load_schema(name))}

    assert {event.__name__ for event in get_args(events.Event)} <= declared
