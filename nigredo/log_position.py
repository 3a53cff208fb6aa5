"""Positions in the log, with the record that proves them, and their comparison with the log as it stands. Pure.

An offset alone is no position: after a lost disk, a topic made again or a truncated tail the same number means another
record. So each stored offset carries the topic's id and the last record that was handled before it: offset, timestamp,
a hash of the key, and the leader epoch where the client reports it. Epochs tell a truncated tail (KIP-320), but a disk
that is set back to a snapshot repeats their numbers; timestamp and key tell that too.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from nigredo.errors import NigredoError

REPAIR = "nigredo recover"
VERSION = "nigredo/1"
END = " ."
"""Closes the text: librdkafka hands metadata on without its length, so that bytes of its memory may follow
(confluentinc/librdkafka#4649). No field begins with a dot."""
_FIELD = re.compile(r"([a-z]+)=([!-~]+)")
_OLD_SINKS = re.compile(r"[0-9]{13}")
"""Milliseconds until the year 2286, whatever follows them."""


@dataclass(frozen=True, slots=True)
class Mark:
    """A record as it is recognised later, without anything of its contents."""

    offset: int
    timestamp_ms: int
    key_crc32: int
    leader_epoch: int | None = None
    """None where the client does not report it."""

    @classmethod
    def of(cls, offset: int, timestamp_ms: int, key: bytes | None, leader_epoch: int | None = None) -> Mark:
        """Return the mark of a record."""
        return cls(offset, timestamp_ms, zlib.crc32(key or b""), leader_epoch)

    def matches(self, other: Mark, *, exact_time: bool = True) -> bool:
        """Say whether two marks are of one record.

        exact_time: False where this mark's time is a bound (a window's clock never runs backwards), not the record's.
        """
        same_time = self.timestamp_ms == other.timestamp_ms or (
            not exact_time and other.timestamp_ms < self.timestamp_ms
        )
        epochs = (self.leader_epoch, other.leader_epoch)
        same_epoch = None in epochs or epochs[0] == epochs[1]
        return self.offset == other.offset and self.key_crc32 == other.key_crc32 and same_time and same_epoch


@dataclass(frozen=True, slots=True)
class LogPosition:
    """A stored position in a partition, and what proves that the log is still the one it was stored for.

    Without topic id and mark (offsets of an older release, or set by Kafka's own tools) it is believed.
    """

    next_offset: int
    topic_id: str | None = None
    last: Mark | None = None
    """A record handled before `next_offset`: the last one, as a rule."""
    past_end: bool = False
    """Whether a look found it past the end of the log with no record to prove it: a log that grows proves nothing."""

    @property
    def asks_at(self) -> int:
        """The offset of the record to read for a comparison, or for the proof of a position that has none."""
        return self.last.offset if self.last is not None else max(0, self.next_offset - 1)


@dataclass(frozen=True, slots=True)
class LogNow:
    """A partition as the log has it now."""

    topic_id: str
    start: int
    end: int
    found: Mark | None = None
    """The first record at or after the offset asked for; None without one."""
    append_time: bool = False
    """Whether the broker gives the timestamps: then they do not decrease along the log."""


class PositionRefused(NigredoError):
    """A partition's stored position that the log does not bear out: consume nothing of it."""

    def __init__(self, reason: str, keep: LogPosition | None = None) -> None:
        """keep: to be stored in its place, so that it stays refused (`kept`)."""
        super().__init__(reason)
        self.keep = keep


class Finding(Enum):
    """The result of a comparison."""

    AGREES = "agrees"
    UNPROVEN = "unproven"
    """Nothing is stored that could prove it: believed, and proven by the next commit."""
    PAST_END = "past_end"
    OTHER_RECORD = "other_record"
    OTHER_TOPIC = "other_topic"
    TRIMMED = "trimmed"
    """Records that were not handled yet were deleted from the start of the log."""

    @property
    def believed(self) -> bool:
        """Whether reading may go on at the position."""
        return self in (Finding.AGREES, Finding.UNPROVEN)


def compare(position: LogPosition, now: LogNow, *, exact_time: bool = True) -> Finding:
    """Compare a position with the log, read at `position.asks_at`."""
    if position.topic_id is not None and position.topic_id != now.topic_id:
        return Finding.OTHER_TOPIC
    if position.next_offset > now.end or position.past_end:
        return Finding.PAST_END
    if position.last is not None and not _agrees(position.last, now, exact_time=exact_time):
        return Finding.OTHER_RECORD
    if position.next_offset < now.start:
        return Finding.TRIMMED
    return Finding.UNPROVEN if position.topic_id is None and position.last is None else Finding.AGREES


def _agrees(last: Mark, now: LogNow, *, exact_time: bool) -> bool:
    if now.found is None:
        return True  # Deleted with all after it: the end, which lies past it, is all that is left to compare.
    if now.found.offset == last.offset:
        return last.matches(now.found, exact_time=exact_time)
    # Compacted or deleted: what follows cannot be older than it.
    older_epoch = (
        last.leader_epoch is not None
        and now.found.leader_epoch is not None
        and now.found.leader_epoch < last.leader_epoch
    )
    return not older_epoch and not (now.append_time and exact_time and now.found.timestamp_ms < last.timestamp_ms)


def proven(position: LogPosition, now: LogNow) -> LogPosition:
    """Return a believed position with what the log offers as its proof."""
    if position.last is not None:
        return LogPosition(position.next_offset, now.topic_id, position.last)
    last = now.found if now.found is not None and now.found.offset < position.next_offset else None
    return LogPosition(position.next_offset, now.topic_id, last)


def kept(position: LogPosition, now: LogNow) -> LogPosition | None:
    """Return what to store in the place of a refused position; None for one that stays refused by what it carries.

    Without a record to compare, a position past the end would be believed as soon as the log has grown past it.
    """
    if position.last is not None or position.past_end or position.next_offset <= now.end:
        return None
    return LogPosition(position.next_offset, position.topic_id or now.topic_id, past_end=True)


def refusal(group: str, topic: str, partition: int, position: LogPosition, now: LogNow, finding: Finding) -> str:
    """Return the sentence for an operator about a position that is not believed."""
    earlier = ", and ended before that offset earlier" if position.next_offset <= now.end else ""
    found = {
        Finding.PAST_END: f"the log ends at {now.end}{earlier}: its tail was lost",
        Finding.OTHER_RECORD: f"offset {position.asks_at} holds another record than the one handled there: the log "
        f"was set back and written on, and ends at {now.end}",
        Finding.OTHER_TOPIC: f"the topic was deleted and made again: its id is {now.topic_id} instead of "
        f"{position.topic_id}, and it has offsets {now.start} to {now.end}",
        Finding.TRIMMED: f"the log begins at {now.start}: offsets {position.next_offset} to {now.start - 1} were "
        "deleted unread",
    }[finding]
    stands = f"{group} stands at offset {position.next_offset} of {topic} partition {partition}"
    return f"{stands}, but {found}; repair it with: {REPAIR}"


# --- as text, in the metadata of a group's commit ---------------------------------------------------------------------


def to_metadata(position: LogPosition, **further: str) -> str:
    """Return the text for a commit of `position.next_offset`, some hundred bytes of the 4 KiB that Kafka takes.

    further: fields of the group's own, by lower-case names that are not taken here, without blanks in the values.
    """
    fields = {} if position.topic_id is None else {"topic": position.topic_id}
    if (last := position.last) is not None:
        fields |= {"last": str(last.offset), "ms": str(last.timestamp_ms), "key": f"{last.key_crc32:08x}"}
        if last.leader_epoch is not None:
            fields["epoch"] = str(last.leader_epoch)
    if position.past_end:
        fields["past"] = "end"
    pairs = [f"{name}={value}" for name, value in (*fields.items(), *further.items())]
    if len(fields | further) < len(pairs) or not all(map(_FIELD.fullmatch, pairs)):
        raise ValueError("a field of commit metadata has a name that is taken, or a blank in it")
    return " ".join((VERSION, *pairs)) + END


def from_metadata(next_offset: int, text: str | None) -> tuple[LogPosition, Mapping[str, str]]:
    """Return the position of a committed offset and the group's own fields, from any metadata there is.

    Metadata that is not the product's (Kafka's own tools leave it empty) proves nothing: an operator set the offset.
    Plain milliseconds are the sink's of earlier releases: its field `since`.
    """
    if old := _OLD_SINKS.match(text or ""):
        return LogPosition(next_offset), {"since": old[0]}
    whole, end, _ = (text or "").partition(END)
    version, *pairs = whole.split(" ")
    found = [_FIELD.fullmatch(pair) for pair in pairs]
    if version != VERSION or not end or None in found:
        return LogPosition(next_offset), {}
    fields = {match[1]: match[2] for match in found if match is not None}
    topic_id, last, ms, key, epoch = (fields.pop(name, None) for name in ("topic", "last", "ms", "key", "epoch"))
    past_end = fields.pop("past", None) is not None
    if last is None or ms is None or key is None:
        return LogPosition(next_offset, topic_id, past_end=past_end), fields
    try:
        mark = Mark(int(last), int(ms), int(key, 16), None if epoch is None else int(epoch))
    except ValueError:
        return LogPosition(next_offset, topic_id, past_end=past_end), fields
    return LogPosition(next_offset, topic_id, mark, past_end), fields
