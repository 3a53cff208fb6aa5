"""Registration of schemas and the pinning of their ids: the one place and the one order in which either happens.

The log's cluster says what an id means (`nigredo.schemas`); the registry is to say the same to readers outside. Here
the two are compared, what the registry lost is brought back, and an id that the registry gave to another schema is
refused until `nigredo schemas repair` has found a fresh one.
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
"""What the registry says of a pinned id: the same schema, none, another one."""
AT_ONCE = 8
SAMPLE = 200
"""Records of a partition that are looked at to tell which of two schemas an id means."""
REPAIR = "`nigredo schemas repair`"

Asked = TypeVar("Asked")
Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class Finding:
    """A pinned id beside what the registry says of it."""

    pin: Pin
    standing: str
    written: bool
    """Whether records are written under it: it is the id of a newest version."""
    subjects: tuple[str, ...] = ()
    """Under which the registry has the id, where it is taken."""

    @property
    def told(self) -> str:
        """The id in the words of a message."""
        if self.standing == TAKEN:
            return f"id {self.pin.id} is {self.pin.name} here and {self.other} in the registry"
        return f"id {self.pin.id} ({self.pin.name})"

    @property
    def other(self) -> str:
        """What the registry takes the id for."""
        return ", ".join(self.subjects) or "another schema"


def conflict(findings: Sequence[Finding]) -> str | None:
    """Return the line for an operator about ids that are written and that readers outside do not find; None if none.

    An id that is written no more is left out: its records keep it, and no repair gives it back.
    """
    wrong = [each for each in findings if each.written and each.standing != KNOWN]
    if not wrong:
        return None
    state = "" if wrong[0].standing == TAKEN else " is not in the registry"
    more = f", and {counted(len(wrong) - 1, 'other id')}" if len(wrong) > 1 else ""
    return f"schemas: {wrong[0].told}{state}{more}: readers outside cannot read what is written under it; {REPAIR}"


def ensure_schemas(settings: Settings, endpoints: Iterable[str] = (), *, deadline_s: float = 60.0) -> list[str]:
    """Register and pin every schema, retrying while the registry is away; return what was changed, as lines.

    endpoints: whose retry topics get their subjects although they are not made yet. The topics must be there.
    Safe to repeat. Raises DependencyDown past the deadline, StartRefused when a schema would break readers, and, before
    anything is changed, when an id that is written is another schema's in the registry.
    """
    ids = SchemaIds(settings)
    return patiently(lambda: ids.ensure(endpoints), deadline_s=deadline_s)


def patiently(call: Callable[[], Answer], *, deadline_s: float = 60.0) -> Answer:
    """Call again while Kafka or the registry is away. Blocks. Raises DependencyDown past the deadline."""
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
    """Pins, registry and schema files of one installation side by side. Blocks. Every call may raise DependencyDown."""

    def __init__(self, settings: Settings, registry: Registry | None = None, reader: TopicReader | None = None) -> None:
        self._settings = settings
        self._reader = reader or TopicReader(settings, COMPONENT)
        self._registry = registry or open_registry(settings)
        self._cache = settings.state_dir / "schemas"
        """Where a release before this one kept what its registry said."""

    def findings(self) -> list[Finding]:
        """Return every pinned id, and what the registry says of it."""
        return self._compare(read_pins(self._reader))

    def ensure(self, endpoints: Iterable[str] = ()) -> list[str]:
        """Do what `ensure_schemas` says, once."""
        subjects = self._subjects(endpoints)
        pins, adopted = self._pins(subjects)
        findings = self._compare(pins)
        if taken := [each for each in findings if each.standing == TAKEN and each.written]:
            told = "; ".join(each.told for each in taken)
            raise StartRefused(f"{told}: readers outside cannot read what is written under it; {REPAIR}")
        lines = self._keep(adopted)
        # Before anything is registered: the registry gives out numbers, and these are given.
        lines += [self._bring_back(each) for each in findings if each.standing == MISSING]
        return lines + self._register(pins, subjects)

    def repair(self, *, dry_run: bool) -> list[str]:
        """Bring back what the registry lost, and find fresh ids for what it gave to others; one line each.

        Raises StartRefused when the registry cannot keep pinned ids apart from others.
        """
        pins, adopted = self._pins(self._subjects(()))
        findings = self._compare(pins)
        lines = [] if dry_run else self._keep(adopted)
        for each in (each for each in findings if each.standing == MISSING):
            lines.append(f"{each.told} would be brought back" if dry_run else self._bring_back(each))
        for each in (each for each in findings if each.standing == TAKEN):
            past = f"{each.told}: readers outside cannot read what was written under it"
            if not each.written:
                lines.append(f"{past}; no more is")
            elif dry_run:
                lines.append(f"{past}; a fresh id would take its place")
            else:
                fresh = self._fresh(pins, each.pin)
                lines.append(f"{past}; id {fresh} takes its place in a process from its next start on")
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
            return f"brought {lost.told} back to the registry: readers outside find it again"
        return f"{lost.told} is lost to the registry, which cannot be told ids: readers outside do not find it"

    def _register(self, pins: Pins, subjects: Mapping[str, Sequence[str]]) -> list[str]:
        """Register the newest version, under a subject without any every one; pin the ids that are new.

        Of a schema that has ids already, only what was written comes to a subject that lost all: the same as before.
        """
        every = [subject for several in subjects.values() for subject in several]
        standing = dict(zip(every, _each(self._registry.newest_of, every), strict=True))
        _each(lambda subject: self._registry.set_compatibility(subject, COMPATIBILITY), every)
        lines, fresh = [], []
        for name, texts in files().items():
            for subject in subjects[name]:
                newest = standing[subject]
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
        # Together, since each connection of a producer takes its time: what a crash leaves out, the next run finds in
        # the registry.
        write_pins(self._settings, fresh)
        return lines

    def _registered(self, pins: Pins, subject: str, text: str, *, anew: bool = False) -> int:
        """Register a schema; return an id for it that means no other one here.

        anew: an id that it has already does not count. Raises StartRefused where the registry gives none.
        """
        try:
            schema_id = self._registry.register(subject, text)
            known = pins.get(schema_id)
            if known is None or same(known.text, text):
                return schema_id
            # The registry had the schema already, under a number that is pinned for another one.
            if not anew and (written := pins.written_id(text)) is not None:
                return written
            fresh = max(pin.id for pin in pins) + 1
            while self._has(fresh):
                fresh += 1
            if self._registry.bring_back(fresh, subject, text):
                return fresh
        except SchemaIncompatible as error:
            raise StartRefused(str(error)) from error
        raise StartRefused(
            f"the registry has {subject} under id {schema_id}, which here means {known.name}, and cannot be told "
            "another one: let it give out higher ids, or use another registry"
        )

    def _has(self, schema_id: int) -> bool:
        try:
            self._registry.text_of(schema_id)
        except SchemaUnknown:
            return False
        return True

    def _fresh(self, pins: Pins, pin: Pin) -> int:
        """Return an id by which a schema is written from now on, since its own is another's."""
        schema_id = self._registered(pins, pin.subject, pin.text, anew=True)
        # Also one that is pinned already: of several ids of a schema the last one in the log is written.
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

    # --- ids that nobody pinned: a release before this one, or one beside it ------------------------------------------

    def _pins(self, subjects: Mapping[str, Sequence[str]]) -> tuple[Pins, list[Pin]]:
        """Return the pins, and which of them are still to be written: they come from what else tells of ids.

        Raises StartRefused where that contradicts itself and the log cannot tell either.
        """
        pins = read_pins(self._reader)
        told: dict[int, list[Pin]] = defaultdict(list)
        every = [subject for several in subjects.values() for subject in several]
        newest = {
            subject: found
            for subject, found in zip(every, _each(self._registry.newest_of, every), strict=True)
            if found is not None
        }
        pinned = all(pins.get(schema_id) is not None for schema_id, _ in newest.values())
        if len(pins) and pinned and not self._cache.exists():
            return pins, []
        for pin in [*self._cached(subjects), *self._registered_ones(subjects, newest)]:
            if pins.get(pin.id) is None and not any(same(pin.text, other.text) for other in told[pin.id]):
                told[pin.id].append(pin)
        # In this order: of several ids of a schema the registry's is written.
        adopted = [each[0] if len(each) == 1 else self._in_log(each) for each in told.values() if each]
        for pin in adopted:
            pins.add(pin)
        return pins, adopted

    def _registered_ones(self, subjects: Mapping[str, Sequence[str]], there: Container[str]) -> Iterator[Pin]:
        for name, texts in files().items():
            versions = {fingerprint(text): number for number, text in enumerate(texts, 1)}
            for subject in (subject for subject in subjects[name] if subject in there):
                for schema_id, text in self._registry.schemas_of(subject):
                    yield Pin(schema_id, subject, versions.get(fingerprint(text), 0), text)

    def _cached(self, subjects: Mapping[str, Sequence[str]]) -> Iterator[Pin]:
        """Yield what the release before kept on disk of the schemas that there are files of."""
        known = {}
        for name, texts in files().items():
            for version, text in enumerate(texts, 1):
                known[fingerprint(text)] = (subjects[name][0], version, text)
                digest = hashlib.sha256(text.encode()).hexdigest()[:16]
                for file in self._cache.glob(f"{subjects[name][0]}.{digest}.id"):
                    # A file that was cut short tells nothing.
                    with suppress(ValueError):
                        yield Pin(int(file.read_text(encoding="utf-8")), subjects[name][0], version, text)
        for file in sorted(self._cache.glob("*.avsc")):
            with suppress(ValueError, KeyError):
                yield Pin(int(file.stem), *known[fingerprint(file.read_text(encoding="utf-8"))])

    def _keep(self, adopted: Sequence[Pin]) -> list[str]:
        write_pins(self._settings, adopted)
        # What it tells is pinned by now; it would outlive its registry and its cluster.
        shutil.rmtree(self._cache, ignore_errors=True)
        return [f"pinned id {pin.id}, known before, for {pin.name}" for pin in adopted]

    def _in_log(self, candidates: Sequence[Pin]) -> Pin:
        """Return which of several schemas the records under one id were written with; the last one without records."""
        schema_id = candidates[0].id
        beginning = PREFIX.pack(MAGIC, schema_id)
        found = set()
        for value in self._sample({pin.subject.removesuffix("-value") for pin in candidates}):
            if value.startswith(beginning):
                found |= {pin for pin in candidates if fits(pin.text, value[PREFIX.size :])}
        if len(found) > 1:
            names = " and ".join(sorted(pin.name for pin in found))
            raise StartRefused(
                f"id {schema_id} was written for {names}, by the registry's word and by {self._cache}: "
                f"move {self._cache} away to believe the registry"
            )
        return found.pop() if found else candidates[-1]

    def _sample(self, topics: Iterable[str]) -> Iterator[bytes]:
        """Yield some values of each partition: the first ones and the last ones."""
        for topic in sorted(set(self._reader.topics()).intersection(topics)):
            for partition in self._reader.partitions(topic):
                low, end = self._reader.watermarks(topic, partition)
                last = max(low, end - SAMPLE)
                for start, stop in ((low, min(low + SAMPLE, last)), (last, end)):
                    for message in self._reader.between(topic, partition, start, stop):
                        if (value := message.value()) is not None:
                            yield value


def _each(call: Callable[[Asked], Answer], asked: Sequence[Asked]) -> list[Answer]:
    """Return the answers in their order, several asked at once: each waits for the registry."""
    with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="schemas") as threads:
        return list(threads.map(call, asked))
