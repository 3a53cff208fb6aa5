"""Schema registration and pinning of schema ids; no other module does either, so that their order is fixed.

The pins in `nigredo.schemas` are the authority on an id's meaning; external readers rely on the registry for the same.
This module compares the two, restores ids that the registry lost, and refuses an id that the registry assigned to
another schema until `nigredo schemas repair` has replaced the id.
"""

from __future__ import annotations

import hashlib
import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

from nigredo.avro.codec import MAGIC, PREFIX
from nigredo.avro.pins import Pin, Pins, files, fingerprint, fits, same
from nigredo.avro.registry import Registry, SchemaIncompatible, SchemaUnknown
from nigredo.avro.registry_client import open_registry
from nigredo.backoff import Backoff
from nigredo.endpoints.keys import FIRST_ENDPOINT
from nigredo.errors import DependencyDown, StartRefused
from nigredo.kafka.pinned_schemas import read_pins, write_pins
from nigredo.kafka.topic_reader import TopicReader
from nigredo.plural import counted
from nigredo.settings import Settings
from schemas.topics import RETRIES_PREFIX, TOPICS, retry_topics

COMPATIBILITY = "FULL_TRANSITIVE"
COMPONENT = "schemas"
RETRIES = "webhook-retries"
KNOWN, MISSING, TAKEN = "known", "missing", "taken"
"""State of a pinned id in the registry: the same schema, no schema, another schema."""
AT_ONCE = 8
SAMPLE = 200
"""Records read at each end of a partition to decide which of several schemas an id means."""
REPAIR = "`nigredo schemas repair`"

Asked = TypeVar("Asked")
Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class Finding:
    """A pinned id and its state in the registry."""

    pin: Pin
    standing: str
    written: bool
    """Whether new records are written under the id, because it belongs to the newest version of a schema."""
    subjects: tuple[str, ...] = ()
    """Subjects under which the registry has a taken id."""

    @property
    def described(self) -> str:
        """The id and its meaning, for a message."""
        if self.standing == TAKEN:
            return f"id {self.pin.id} is {self.pin.name} here and {self.other} in the registry"
        return f"id {self.pin.id} ({self.pin.name})"

    @property
    def other(self) -> str:
        """The registry's subjects of a taken id, for a message."""
        return ", ".join(self.subjects) or "another schema"


def conflict(findings: Sequence[Finding]) -> str | None:
    """Return an operator's line about ids in use that external readers do not find; None when there is none.

    Ids of older versions are left out, because no record is written under them and no repair can change their records.
    """
    wrong = [each for each in findings if each.written and each.standing != KNOWN]
    if not wrong:
        return None
    state = "" if wrong[0].standing == TAKEN else " is not in the registry"
    more = f", and {counted(len(wrong) - 1, 'other id')}" if len(wrong) > 1 else ""
    return (
        f"schemas: {wrong[0].described}{state}{more}: external readers cannot decode records written under it; {REPAIR}"
    )


def ensure_schemas(settings: Settings, endpoints: Iterable[str] = (), *, deadline_s: float = 60.0) -> list[str]:
    """Register and pin every schema, retrying while the registry is unavailable; return one line for each change.

    endpoints: endpoints whose retry topics get subjects before they are created. All other topics must exist. Safe to
    repeat. Raises DependencyDown past the deadline, StartRefused when a schema would break readers, and, before any
    change, when an id in use belongs to another schema in the registry.
    """
    ids = SchemaIds(settings)
    return patiently(lambda: ids.ensure(endpoints), deadline_s=deadline_s)


def patiently(call: Callable[[], Answer], *, deadline_s: float = 60.0) -> Answer:
    """Retry a call that raises DependencyDown, with back-off. Blocks. Raises DependencyDown past the deadline."""
    deadline, backoff = time.monotonic() + deadline_s, Backoff(longest_s=2.0)
    while True:
        try:
            return call()
        except DependencyDown:
            wait_s = backoff.next_wait_s()
            if time.monotonic() + wait_s > deadline:
                raise
            time.sleep(wait_s)


class SchemaIds:
    """Compares pins, registry and schema files of one installation. Blocks. Every call may raise DependencyDown."""

    def __init__(self, settings: Settings, registry: Registry | None = None, reader: TopicReader | None = None) -> None:
        self._settings = settings
        self._reader = reader or TopicReader(settings, COMPONENT)
        self._registry = registry or open_registry(settings)
        self._cache = settings.state_dir / "schemas"
        """Directory in which an earlier release cached the registry's answers."""

    def findings(self) -> list[Finding]:
        """Return every pinned id with its state in the registry."""
        return self._compare(read_pins(self._reader))

    def ensure(self, endpoints: Iterable[str] = ()) -> list[str]:
        """Register and pin every schema, as `ensure_schemas` does, without retrying."""
        subjects = self._subjects(endpoints)
        pins, adopted = self._pins(subjects)
        findings = self._compare(pins)
        if taken := [each for each in findings if each.standing == TAKEN and each.written]:
            ids = "; ".join(each.described for each in taken)
            raise StartRefused(f"{ids}: external readers cannot decode records written under it; {REPAIR}")
        lines = self._pin_adopted(adopted)
        # Restored before any registration, because the registry might assign a lost id to a new schema.
        lines += [self._bring_back(each) for each in findings if each.standing == MISSING]
        return lines + self._register(pins, subjects)

    def repair(self, *, dry_run: bool) -> list[str]:
        """Restore ids that the registry lost, replace ids that it assigned to other schemas; return a line for each.

        Raises StartRefused when the registry can neither import ids nor assign an unused one.
        """
        pins, adopted = self._pins(self._subjects(()))
        findings = self._compare(pins)
        lines = [] if dry_run else self._pin_adopted(adopted)
        for each in (each for each in findings if each.standing == MISSING):
            lines.append(f"{each.described} would be brought back" if dry_run else self._bring_back(each))
        for each in (each for each in findings if each.standing == TAKEN):
            line = f"{each.described}: external readers cannot decode records already written under it"
            if not each.written:
                lines.append(f"{line}; no new ones are written")
            elif dry_run:
                lines.append(f"{line}; a fresh id would take its place")
            else:
                fresh = self._fresh(pins, each.pin)
                lines.append(f"{line}; id {fresh} takes its place in each process at its next start")
        return lines

    def _compare(self, pins: Pins) -> list[Finding]:
        written = {pins.written_id(texts[-1]) for texts in files().values()}

        def compared(pin: Pin) -> Finding:
            try:
                if same(self._registry.text_of(pin.id), pin.text):
                    return Finding(pin, KNOWN, pin.id in written)
            except SchemaUnknown:
                return Finding(pin, MISSING, pin.id in written)
            return Finding(pin, TAKEN, pin.id in written, tuple(self._registry.subjects_of(pin.id)))

        return _each(compared, list(pins))

    def _bring_back(self, lost: Finding) -> str:
        try:
            back = self._registry.bring_back(lost.pin.id, lost.pin.subject, lost.pin.text)
        except SchemaIncompatible as error:
            raise StartRefused(str(error)) from error
        if back:
            return f"brought {lost.described} back to the registry: external readers find it again"
        return f"{lost.described} is not in the registry, which cannot import ids: external readers do not find it"

    def _register(self, pins: Pins, subjects: Mapping[str, Sequence[str]]) -> list[str]:
        """Register each schema's newest version, and pin new ids; return one line for each registration.

        A subject without versions gets all versions, or, when the schema has pins, only the pinned ones and the newest,
        so that a subject that lost its versions gets the same ones back.
        """
        every = [subject for several in subjects.values() for subject in several]
        present = dict(zip(every, _each(self._registry.newest_of, every), strict=True))
        _each(lambda subject: self._registry.set_compatibility(subject, COMPATIBILITY), every)
        lines, fresh = [], []
        for name, texts in files().items():
            for subject in subjects[name]:
                newest = present[subject]
                pinned = [text for text in texts if pins.written_id(text) is not None]
                if newest is not None and same(newest[1], texts[-1]) and texts[-1] in pinned:
                    continue
                known = [text for _, text in self._registry.schemas_of(subject)] if newest else []
                wanted = texts[-1:] if known else [*pinned, *texts[-1:]] if pinned else texts
                for text in dict.fromkeys(wanted):
                    if text in pinned and any(same(text, other) for other in known):
                        continue
                    pin = Pin(self._registered(pins, subject, text), subject, texts.index(text) + 1, text)
                    lines.append(f"registered {pin.name} under id {pin.id}")
                    if pins.get(pin.id) is None:
                        pins.add(pin)
                        fresh.append(pin)
        # Written together, because each producer connection takes time. After a crash the next run finds the missing
        # ones in the registry.
        write_pins(self._settings, fresh)
        return lines

    def _registered(self, pins: Pins, subject: str, text: str, *, renew: bool = False) -> int:
        """Register a schema; return an id for it that no pin gives another meaning.

        renew: do not reuse an id that is pinned for the schema already. Raises StartRefused when the registry gives no
        usable id.
        """
        try:
            schema_id = self._registry.register(subject, text)
            known = pins.get(schema_id)
            if known is None or same(known.text, text):
                return schema_id
            # The registry had the schema already, under an id that is pinned for another schema.
            if not renew and (written := pins.written_id(text)) is not None:
                return written
            fresh = max(pin.id for pin in pins) + 1
            while self._has(fresh):
                fresh += 1
            if self._registry.bring_back(fresh, subject, text):
                return fresh
        except SchemaIncompatible as error:
            raise StartRefused(str(error)) from error
        raise StartRefused(
            f"the registry has {subject} under id {schema_id}, which here means {known.name}, and cannot import "
            "another id: let it assign higher ids, or use another registry"
        )

    def _has(self, schema_id: int) -> bool:
        try:
            self._registry.text_of(schema_id)
        except SchemaUnknown:
            return False
        return True

    def _fresh(self, pins: Pins, pin: Pin) -> int:
        """Pin and return a new id for a schema whose own id the registry assigned to another schema."""
        schema_id = self._registered(pins, pin.subject, pin.text, renew=True)
        # Pinned again even if it has a pin, because records are written under the last pin of a schema in the log.
        again = Pin(schema_id, pin.subject, pin.version, pin.text)
        write_pins(self._settings, [again])
        pins.add(again)
        return schema_id

    def _subjects(self, endpoints: Iterable[str]) -> Mapping[str, Sequence[str]]:
        """Return the subjects of each schema, in the order of registration."""
        found: dict[str, list[str]] = defaultdict(list)
        for spec in TOPICS.values():
            found[spec.schema].append(spec.subject)
        made = [name for name in self._reader.topics() if name.startswith(RETRIES_PREFIX)]
        retries = [name for endpoint in (FIRST_ENDPOINT, *endpoints) for name in retry_topics(endpoint)]
        found[RETRIES] = [f"{name}-value" for name in dict.fromkeys([*retries, *made])]
        return found

    # --- ids without a pin, from an earlier release or another process ------------------------------------------------

    def _pins(self, subjects: Mapping[str, Sequence[str]]) -> tuple[Pins, list[Pin]]:
        """Return the pins, and those among them that are adopted from the registry or the old cache, to be written.

        Raises StartRefused when registry and cache contradict each other and the log does not decide.
        """
        pins = read_pins(self._reader)
        candidates: dict[int, list[Pin]] = defaultdict(list)
        every = [subject for several in subjects.values() for subject in several]
        newest = {
            subject: found
            for subject, found in zip(every, _each(self._registry.newest_of, every), strict=True)
            if found is not None
        }
        pinned = all(pins.get(schema_id) is not None for schema_id, _ in newest.values())
        if len(pins) and pinned and not self._cache.exists():
            return pins, []
        for pin in [*self._cached(subjects), *self._registered_pins(subjects, newest)]:
            if pins.get(pin.id) is None and not any(same(pin.text, other.text) for other in candidates[pin.id]):
                candidates[pin.id].append(pin)
        # The order matters: the registry's pins come last, so that records are written under the registry's id.
        adopted = [each[0] if len(each) == 1 else self._in_log(each) for each in candidates.values() if each]
        for pin in adopted:
            pins.add(pin)
        return pins, adopted

    def _registered_pins(self, subjects: Mapping[str, Sequence[str]], present: Container[str]) -> Iterator[Pin]:
        for name, texts in files().items():
            versions = {fingerprint(text): number for number, text in enumerate(texts, 1)}
            for subject in (subject for subject in subjects[name] if subject in present):
                for schema_id, text in self._registry.schemas_of(subject):
                    yield Pin(schema_id, subject, versions.get(fingerprint(text), 0), text)

    def _cached(self, subjects: Mapping[str, Sequence[str]]) -> Iterator[Pin]:
        """Yield the ids that an earlier release cached on disk, for schemas that have files."""
        known = {}
        for name, texts in files().items():
            for version, text in enumerate(texts, 1):
                known[fingerprint(text)] = (subjects[name][0], version, text)
                digest = hashlib.sha256(text.encode()).hexdigest()[:16]
                for file in self._cache.glob(f"{subjects[name][0]}.{digest}.id"):
                    # A truncated file is ignored.
                    with suppress(ValueError):
                        yield Pin(int(file.read_text(encoding="utf-8")), subjects[name][0], version, text)
        for file in sorted(self._cache.glob("*.avsc")):
            with suppress(ValueError, KeyError):
                yield Pin(int(file.stem), *known[fingerprint(file.read_text(encoding="utf-8"))])

    def _pin_adopted(self, adopted: Sequence[Pin]) -> list[str]:
        """Write the adopted pins and delete the old cache; return one line for each."""
        write_pins(self._settings, adopted)
        # Its ids are pinned now, and the cache would outlive its registry and its cluster.
        shutil.rmtree(self._cache, ignore_errors=True)
        return [f"pinned id {pin.id}, known before, for {pin.name}" for pin in adopted]

    def _in_log(self, candidates: Sequence[Pin]) -> Pin:
        """Return the schema with which the records under an id were written; the last candidate without records."""
        schema_id = candidates[0].id
        beginning = PREFIX.pack(MAGIC, schema_id)
        found = set()
        for value in self._sample({pin.subject.removesuffix("-value") for pin in candidates}):
            if value.startswith(beginning):
                found |= {pin for pin in candidates if fits(pin.text, value[PREFIX.size :])}
        if len(found) > 1:
            names = " and ".join(sorted(pin.name for pin in found))
            raise StartRefused(
                f"id {schema_id} was written for {names}, by the registry and by {self._cache}: "
                f"move {self._cache} away to trust the registry"
            )
        return found.pop() if found else candidates[-1]

    def _sample(self, topics: Iterable[str]) -> Iterator[bytes]:
        """Yield up to SAMPLE of the first and of the last values of each partition."""
        for topic in sorted(set(self._reader.topics()).intersection(topics)):
            for partition in self._reader.partitions(topic):
                low, end = self._reader.watermarks(topic, partition)
                last = max(low, end - SAMPLE)
                for start, stop in ((low, min(low + SAMPLE, last)), (last, end)):
                    for message in self._reader.between(topic, partition, start, stop):
                        if (value := message.value()) is not None:
                            yield value


def _each(call: Callable[[Asked], Answer], asked: Sequence[Asked]) -> list[Answer]:
    """Return the answers in order; runs AT_ONCE calls in parallel, because each waits for the registry."""
    with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="schemas") as threads:
        return list(threads.map(call, asked))
