"""Schema ids: pins, registry and files agree again after any of them was lost or contradicts the others."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any
from uuid import uuid4

import fastavro
import pytest

from nigredo.avro.codec import PREFIX, Codec, Undecodable
from nigredo.avro.pins import Pin, PinBroken, Pins, files, fits, pin_of, same
from nigredo.avro.registry import Registry, RegistryUnavailable, SchemaUnknown
from nigredo.errors import DependencyDown, StartRefused
from nigredo.kafka import pinned_schemas as pinned
from nigredo.kafka.pinned_schemas import PinnedSchemas, read_pins
from nigredo.operations import schema_ids
from nigredo.operations.schema_ids import SchemaIds, conflict
from nigredo.settings import Settings
from schemas.events import AuditEntry
from schemas.topics import AUDIT, LEADS, SCHEMAS, SUBMISSIONS, load_schema

FILES = files()
NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)
STRANGE = '"string"'
CONTACT = {"name": "a", "email": "b", "message": "c", "extra": {}}
LEAD = {
    "id": str(uuid4()),
    "client_network": "192.0.2.1",
    "ip_address": "192.0.2.1",
    "user_agent": None,
    "form_id": None,
    "source": None,
    "contact": CONTACT,
    "taken_at": NOON,
    "submitted_at": NOON,
    "released": False,
    "submission_partition": 0,
    "submission_offset": 0,
}


def stranger(number: int) -> str:
    return f'{{"type": "fixed", "name": "F{number}", "size": 1}}'


class Message:
    def __init__(self, key: bytes | None, value: bytes | None, offset: int) -> None:
        self._key, self._value, self._offset = key, value, offset

    def key(self) -> bytes | None:
        return self._key

    def value(self) -> bytes | None:
        return self._value

    def offset(self) -> int:
        return self._offset


class Log:
    """Fake cluster: topics as lists of (key, value)."""

    def __init__(self) -> None:
        self.records: dict[str, list[tuple[bytes | None, bytes | None]]] = {SCHEMAS: []}

    def topics(self) -> list[str]:
        return list(self.records)

    def partitions(self, topic: str) -> list[int]:
        return [0]

    def watermarks(self, topic: str, _: int) -> tuple[int, int]:
        return 0, len(self.records.get(topic, []))

    def read_to_end(self, topic: str, *_: Any, **__: Any) -> Iterator[Message]:
        return self.between(topic, 0, 0, len(self.records[topic]))

    def between(self, topic: str, _: int, start: int, end: int) -> Iterator[Message]:
        for offset, (key, value) in list(enumerate(self.records.get(topic, [])))[start:end]:
            yield Message(key, value, offset)

    def pin(self, _: object, pins: Iterable[Pin]) -> None:
        self.records[SCHEMAS] += [(pin.key, pin.value) for pin in pins]

    @property
    def pins(self) -> dict[int, str]:
        return {pin.id: pin.name for pin in read_pins(self)}  # type: ignore[arg-type]


class Fake:
    """Fake registry like Apicurio: ids in the order of registration; ids can be imported unless `imports` is off."""

    def __init__(self, *, imports: bool = True) -> None:
        self.texts: dict[int, str] = {}
        self.subjects: dict[str, list[int]] = {}
        self.imports = imports
        self.asked = 0
        self.away = False

    def kind_of(self, schema_id: int) -> tuple[str, str]:
        self.asked += 1
        if self.away:
            raise RegistryUnavailable("away")
        if schema_id not in self.texts:
            raise SchemaUnknown
        return "AVRO", self.texts[schema_id]

    def text_of(self, schema_id: int) -> str:
        return self.kind_of(schema_id)[1]

    def subjects_of(self, schema_id: int) -> list[str]:
        return [subject for subject, ids in self.subjects.items() if schema_id in ids]

    def schemas_of(self, subject: str) -> list[tuple[int, str]]:
        return [(schema_id, self.texts[schema_id]) for schema_id in self.subjects.get(subject, [])]

    def newest_of(self, subject: str) -> tuple[int, str] | None:
        return next(reversed(self.schemas_of(subject)), None)

    def set_compatibility(self, *_: str) -> None:
        pass

    def register(self, subject: str, text: str) -> int:
        schema_id = next((known for known, each in self.texts.items() if each == text), max(self.texts, default=0) + 1)
        self.texts[schema_id] = text
        if schema_id not in self.subjects.setdefault(subject, []):
            self.subjects[subject].append(schema_id)
        return schema_id

    def bring_back(self, schema_id: int, subject: str, text: str) -> bool:
        if self.imports:
            self.texts[schema_id] = text
            self.subjects.setdefault(subject, []).append(schema_id)
        return self.imports


class Installation:
    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.settings = Settings.from_environment({"NIGREDO_STATE_DIR": str(folder)})
        self.cache = folder / "schemas"
        self.log, self.registry = Log(), Fake()
        monkeypatch.setattr(schema_ids, "write_pins", self.log.pin)

    @property
    def ids(self) -> SchemaIds:
        return SchemaIds(self.settings, self.registry, self.log)  # type: ignore[arg-type]

    def ensure(self) -> list[str]:
        return self.ids.ensure()

    def keep_in_cache(self, schema_id: int, name: str, subject: str) -> None:
        """Write the cache files of an earlier release."""
        self.cache.mkdir(exist_ok=True)
        text = FILES[name][-1]
        (self.cache / f"{schema_id}.avsc").write_text(text)
        digest = hashlib.sha256(text.encode()).hexdigest()[:16]
        (self.cache / f"{subject}.{digest}.id").write_text(str(schema_id))


@pytest.fixture
def installation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Installation:
    return Installation(tmp_path, monkeypatch)


def written(installation: Installation, name: str) -> int | None:
    return read_pins(installation.log).written_id(FILES[name][-1])  # type: ignore[arg-type]


def test_every_version_is_registered_and_pinned_in_one_order_and_nothing_is_left_to_do(
    installation: Installation,
) -> None:
    installation.ensure()

    assert list(installation.log.pins.values())[:4] == [
        *(f"nigredo.submissions-value v{version}" for version in (1, 2, 3)),
        "nigredo.leads-value v1",
    ]
    assert len(installation.log.pins) == sum(map(len, FILES.values()))
    assert installation.ensure() == []


def test_a_registry_that_was_emptied_gets_the_same_ids_back(installation: Installation) -> None:
    # As after an upgrade: the ids differ from those that a fresh registration would give.
    installation.registry.texts = {number: stranger(number) for number in range(9)}
    installation.ensure()
    before = dict(installation.log.pins)
    subjects = installation.registry.subjects
    installation.registry = Fake()

    lines = installation.ensure()

    assert [line for line in lines if "back to the registry" in line]
    assert installation.log.pins == before
    assert installation.registry.subjects == subjects
    assert {found.standing for found in installation.ids.findings()} == {"known"}
    assert installation.ensure() == []


def test_a_registry_that_cannot_import_ids_is_reported_and_its_new_ids_are_pinned(
    installation: Installation,
) -> None:
    installation.registry.texts = {100: STRANGE}
    installation.ensure()
    old = written(installation, "leads")
    installation.registry = Fake(imports=False)
    installation.registry.texts = {200: STRANGE}

    lines = installation.ensure()

    assert any("cannot import ids" in line for line in lines)
    assert old in installation.log.pins
    assert (written(installation, "leads") or 0) > 200


def test_an_id_in_use_that_the_registry_gave_to_another_schema_is_refused_before_any_change(
    installation: Installation,
) -> None:
    installation.ensure()
    leads, records = written(installation, "leads"), list(installation.log.records[SCHEMAS])
    installation.registry = Fake()
    for number in range(leads or 0):
        installation.registry.register(f"x{number}-value", stranger(number))
    texts = dict(installation.registry.texts)

    with pytest.raises(StartRefused, match=f"id {leads} is nigredo.leads-value v1 here and x3-value in"):
        installation.ensure()
    assert installation.ids.repair(dry_run=True)

    assert (installation.log.records[SCHEMAS], installation.registry.texts) == (records, texts)


def test_a_repair_finds_fresh_ids_past_every_pinned_one_and_writing_goes_on(installation: Installation) -> None:
    installation.ensure()
    before = dict(installation.log.pins)
    installation.registry = Fake()
    for number in range(4):
        installation.registry.register(f"x{number}-value", stranger(number))

    lines = installation.ids.repair(dry_run=False)

    assert sum("takes its place" in line for line in lines) == 2
    assert sum("no new ones are" in line for line in lines) == 2
    assert {schema_id: installation.log.pins[schema_id] for schema_id in before} == before
    assert (written(installation, "leads") or 0) > max(before)
    installation.ensure()
    assert installation.ensure() == []


def test_status_reports_a_lost_or_taken_id_in_use_until_it_is_repaired(installation: Installation) -> None:
    installation.ensure()
    assert conflict(installation.ids.findings()) is None

    installation.registry = Fake()
    lost = conflict(installation.ids.findings()) or ""
    assert "is not in the registry" in lost
    assert "`nigredo schemas repair`" in lost
    installation.ids.repair(dry_run=False)
    assert conflict(installation.ids.findings()) is None

    installation.registry = Fake()
    leads = written(installation, "leads") or 0
    for number in range(leads):
        installation.registry.register(f"x{number}-value", stranger(number))
    assert " here and x" in (conflict(installation.ids.findings()) or "")
    # Records under the old ids stay undecodable for external readers, and no repair can change that.
    installation.ids.repair(dry_run=False)
    assert "taken" in {found.standing for found in installation.ids.findings()}
    assert conflict(installation.ids.findings()) is None


@pytest.mark.parametrize("imports", [True, False])
def test_a_schema_that_the_registry_has_under_another_schemas_pinned_id_gets_an_id_above_all_pins(
    installation: Installation, imports: bool
) -> None:
    installation.ensure()
    before = dict(installation.log.pins)
    installation.registry = Fake(imports=imports)
    for number in range(4):
        installation.registry.register(f"x{number}-value", stranger(number))
    # As by an earlier release, or by a client that registers its schemas.
    installation.registry.register("nigredo.leads-value", FILES["leads"][-1])

    if imports:
        installation.ids.repair(dry_run=False)
        installation.ensure()
        assert written(installation, "leads") == max(installation.log.pins)
        assert {schema_id: installation.log.pins[schema_id] for schema_id in before} == before
        assert installation.ensure() == []
    else:
        with pytest.raises(StartRefused, match="let it assign higher ids"):
            installation.ids.repair(dry_run=False)


def test_a_new_version_that_the_registry_has_under_another_schemas_pinned_id_is_pinned_under_a_new_one(
    installation: Installation,
) -> None:
    installation.log.pin(None, [Pin(1, "x-value", 0, STRANGE)])
    installation.registry.register("nigredo.leads-value", FILES["leads"][-1])

    installation.ensure()

    assert (written(installation, "leads") or 0) > 1
    assert installation.log.pins[1] == "x-value"
    assert installation.ensure() == []


def test_an_old_versions_id_that_became_another_schemas_refuses_nothing(
    installation: Installation,
) -> None:
    installation.ensure()
    installation.registry = Fake()
    installation.registry.register("x-value", STRANGE)

    installation.ensure()

    assert installation.ids.findings()[0].standing == "taken"
    assert not installation.ids.findings()[0].written


def test_ids_that_an_earlier_release_left_in_the_registry_and_on_disk_are_pinned_once(
    installation: Installation,
) -> None:
    installation.registry.texts = {40: FILES["submissions"][-1]}
    installation.registry.subjects = {"nigredo.submissions-value": [40]}
    installation.keep_in_cache(7, "leads", "nigredo.leads-value")

    installation.ensure()

    assert installation.log.pins[40] == "nigredo.submissions-value v3"
    assert installation.log.pins[7] == "nigredo.leads-value v1"
    assert installation.registry.texts[7] == FILES["leads"][-1]
    assert not installation.cache.exists()
    assert installation.ensure() == []


@pytest.mark.parametrize("holds", ["leads", "audit", "nothing", "both"])
def test_where_disk_and_registry_contradict_each_other_the_log_decides(installation: Installation, holds: str) -> None:
    installation.keep_in_cache(7, "leads", "nigredo.leads-value")
    installation.registry.texts = {7: FILES["audit"][-1]}
    installation.registry.subjects = {"nigredo.audit-value": [7]}
    records = {
        LEADS: (FILES["leads"][-1], LEAD),
        AUDIT: (FILES["audit"][-1], {"actor": "a", "action": "b", "subject": "c", "details": {}, "at": NOON}),
    }
    for topic in {"leads": [LEADS], "audit": [AUDIT], "both": [LEADS, AUDIT]}.get(holds, []):
        out = io.BytesIO()
        fastavro.schemaless_writer(out, json.loads(records[topic][0]), records[topic][1])
        assert fits(records[topic][0], out.getvalue())
        installation.log.records[topic] = [(b"k", PREFIX.pack(0, 7) + out.getvalue())]

    if holds == "both":
        with pytest.raises(StartRefused, match="id 7 was written for"):
            installation.ensure()
        assert installation.log.records[SCHEMAS] == []
    elif holds == "leads":
        # The log contradicts the registry, so an operator must decide.
        with pytest.raises(StartRefused):
            installation.ensure()
    else:
        installation.ensure()
        assert installation.log.pins[7] == "nigredo.audit-value v1"


# --- the pins themselves ----------------------------------------------------------------------------------------------


def test_a_pin_is_read_as_it_was_written_and_any_other_record_is_refused() -> None:
    pin = Pin(7, "nigredo.leads-value", 1, FILES["leads"][0])
    assert pin_of(pin.key, pin.value) == pin
    for key, value in ((b"7", None), (b"x", pin.value), (b"7", b"[]"), (b"7", pin.value.replace(b"Lead", b"Dead"))):
        with pytest.raises(PinBroken):
            pin_of(key, value)


def test_an_id_means_one_schema_for_good_and_of_several_ids_the_last_is_written() -> None:
    pins = Pins([Pin(7, "a", 1, STRANGE), Pin(9, "b", 1, STRANGE)])
    assert pins.written_id(STRANGE) == 9
    with pytest.raises(PinBroken):
        pins.add(Pin(7, "c", 1, '"long"'))


def test_schemas_are_compared_by_their_canonical_form() -> None:
    text = FILES["audit"][0]
    assert same(text, text + " ")
    assert not same(text, FILES["leads"][0])
    assert not same('{"$schema": "x", "type": "object"}', text)


# --- a process --------------------------------------------------------------------------------------------------------


def a_process(installation: Installation, monkeypatch: pytest.MonkeyPatch) -> PinnedSchemas:
    schemas = PinnedSchemas(installation.settings)
    monkeypatch.setattr(schemas, "_reader", installation.log)
    monkeypatch.setattr(schemas, "_registry", installation.registry)
    now = count(0.0, 0.5)
    monkeypatch.setattr(pinned.time, "monotonic", lambda: next(now))
    monkeypatch.setattr(pinned.time, "sleep", lambda _: None)
    return schemas


def test_a_process_writes_and_reads_by_the_pins_alone(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    installation.ensure()
    installation.registry.away = True
    codec = Codec(a_process(installation, monkeypatch))
    codec.prepare([AUDIT])
    entry = AuditEntry("ana", "a", "s", {}, NOON)

    assert codec.decode(AUDIT, codec.encode(AUDIT, entry)) == entry


def test_a_process_writes_no_schema_that_is_not_pinned(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    installation.registry.register("nigredo.submissions-value", FILES["submissions"][-1])
    schemas = a_process(installation, monkeypatch)

    with pytest.raises(SchemaUnknown, match="nigredo topics ensure"):
        schemas.id_of(SUBMISSIONS, load_schema("submissions"))
    installation.ensure()
    assert schemas.id_of(SUBMISSIONS, load_schema("submissions")) == written(installation, "submissions")


def test_an_id_is_unknown_only_after_it_was_asked_for_again_and_may_be_pinned_meanwhile(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    installation.ensure()
    codec = Codec(a_process(installation, monkeypatch))
    installation.registry.asked = 0

    with pytest.raises(Undecodable, match="schema id 999"):
        codec.decode(AUDIT, PREFIX.pack(0, 999) + b"x")
    assert installation.registry.asked > 2
    asked = installation.registry.asked
    with pytest.raises(Undecodable):
        codec.decode(AUDIT, PREFIX.pack(0, 999) + b"x")
    assert installation.registry.asked == asked

    monkeypatch.setattr(
        pinned.time, "sleep", lambda _: installation.log.pin(None, [Pin(888, "x", 1, FILES["audit"][0])])
    )
    assert isinstance(codec.decode(AUDIT, PREFIX.pack(0, 888) + b"\x02a\x02b\x02c\0\2"), AuditEntry)


def test_pins_that_contradict_each_other_mean_wait(installation: Installation, monkeypatch: pytest.MonkeyPatch) -> None:
    installation.log.pin(None, [Pin(7, "a", 1, STRANGE), Pin(7, "b", 1, '"long"')])

    with pytest.raises(DependencyDown, match="id 7 is pinned for a v1 and for b v1"):
        a_process(installation, monkeypatch).schema_of(7)


def test_the_fake_registry_has_only_methods_of_the_real_one() -> None:
    played = {name for name in dir(Fake) if not name.startswith("_")}
    assert played <= {name for name in dir(Registry) if not name.startswith("_")}
