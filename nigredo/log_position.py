"""Positions in the log, each with the record that proves it, and their comparison with the current log. Pure.

An offset alone is no position: after a lost disk, a topic created again or a truncated tail, the same number names
another record. Each stored offset therefore carries the topic's id and the last record processed before it: offset,
timestamp, a hash of the key, and the leader epoch where the client reports it. Epochs reveal a truncated tail
(KIP-320), but a disk that is set back to a snapshot repeats their numbers; timestamp and key reveal that too.
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
"""End of the text, needed because librdkafka passes metadata on without its length, so that bytes of its memory may
follow (confluentinc/librdkafka#4649). No field starts with a dot."""
_FIELD = re.compile(r"([a-z]+)=([!-~]+)")
_OLD_SINKS = re.compile(r"[0-9]{13}")
"""Metadata of the sink's earlier releases: milliseconds with 13 digits (until the year 2286), then anything."""


@dataclass(frozen=True, slots=True)
class Mark:
    """The features by which a record is recognised later, without any of its contents."""

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
        """Return whether two marks are of the same record.

        exact_time: False where this mark's time is an upper bound of the record's, as a window's clock is.
        """
        same_time = self.timestamp_ms == other.timestamp_ms or (
            not exact_time and other.timestamp_ms < self.timestamp_ms
        )
        epochs = (self.leader_epoch, other.leader_epoch)
        same_epoch = None in epochs or epochs[0] == epochs[1]
        return self.offset == other.offset and self.key_crc32 == other.key_crc32 and same_time and same_epoch


@dataclass(frozen=True, slots=True)
class LogPosition:
    """A stored position in a partition, with the proof that the log is still the one it was stored for.

    A position without topic id and mark (of an older release, or set by Kafka's own tools) is believed.
    """

    next_offset: int
    topic_id: str | None = None
    last: Mark | None = None
    """A record processed before `next_offset`, usually the last; None without a proof."""
    past_end: bool = False
    """Whether the position was once found past the log end without a mark: it stays refused when the log grows."""

    @property
    def asks_at(self) -> int:
        """Offset of the record to read for a comparison, or for the proof of a position without a mark."""
        return self.last.offset if self.last is not None else max(0, self.next_offset - 1)


@dataclass(frozen=True, slots=True)
class LogNow:
    """Current state of a partition's log. `start` and `end` are log start and log end (the next offset)."""

    topic_id: str
    start: int
    end: int
    found: Mark | None = None
    """The first record at or after the requested offset; None when there is none."""
    append_time: bool = False
    """Whether the broker sets the timestamps, which then never decrease along the log."""


class PositionRefused(NigredoError):
    """The log contradicts a partition's stored position: consume nothing from the partition."""

    def __init__(self, reason: str, keep: LogPosition | None = None) -> None:
        """keep: position to store instead, so that the position stays refused (see `kept`)."""
        super().__init__(reason)
        self.keep = keep


class Finding(Enum):
    """Result of comparing a position with the log."""

    AGREES = "agrees"
    UNPROVEN = "unproven"
    """The position has no proof: believed, and proven by the next commit."""
    PAST_END = "past_end"
    OTHER_RECORD = "other_record"
    OTHER_TOPIC = "other_topic"
    TRIMMED = "trimmed"
    """Records not processed yet were deleted from the start of the log."""

    @property
    def believed(self) -> bool:
        """Whether consuming may continue at the position."""
        return self in (Finding.AGREES, Finding.UNPROVEN)


def compare(position: LogPosition, now: LogNow, *, exact_time: bool = True) -> Finding:
    """Compare a position with the log. now: the log's state, read at offset `position.asks_at`.

    exact_time: see `Mark.matches`.
    """
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
        return True  # Deleted, with every later record: only the log end could disagree, and it is past the mark.
    if now.found.offset == last.offset:
        return last.matches(now.found, exact_time=exact_time)
    # The marked record was compacted or deleted: a record that follows cannot be older.
    older_epoch = (
        last.leader_epoch is not None
        and now.found.leader_epoch is not None
        and now.found.leader_epoch < last.leader_epoch
    )
    return not older_epoch and not (now.append_time and exact_time and now.found.timestamp_ms < last.timestamp_ms)


def proven(position: LogPosition, now: LogNow) -> LogPosition:
    """Return a believed position with a proof: its own, or the record that the log has before it."""
    if position.last is not None:
        return LogPosition(position.next_offset, now.topic_id, position.last)
    last = now.found if now.found is not None and now.found.offset < position.next_offset else None
    return LogPosition(position.next_offset, now.topic_id, last)


def kept(position: LogPosition, now: LogNow) -> LogPosition | None:
    """Return the position to store instead of a refused one; None when its own proof keeps it refused.

    Without a mark, a position past the log end would be believed as soon as the log has grown past it.
    """
    if position.last is not None or position.past_end or position.next_offset <= now.end:
        return None
    return LogPosition(position.next_offset, position.topic_id or now.topic_id, past_end=True)


def refusal(group: str, topic: str, partition: int, position: LogPosition, now: LogNow, finding: Finding) -> str:
    """Return the message for operators about a refused position, with the command that repairs it."""
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
    committed = f"{group} stands at offset {position.next_offset} of {topic} partition {partition}"
    return f"{committed}, but {found}; repair it with: {REPAIR}"


# --- text in the metadata of a group's commit -------------------------------------------------------------------------


def to_metadata(position: LogPosition, **further: str) -> str:
    """Return the metadata text for a commit of `position.next_offset`: some hundred bytes of the 4 KiB Kafka allows.

    further: the group's own fields, by lower-case names not used here, with values without blanks. Raises ValueError
    for another name or value.
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
        raise ValueError("a field of commit metadata has a name that is in use, or a blank in it")
    return " ".join((VERSION, *pairs)) + END


def from_metadata(next_offset: int, text: str | None) -> tuple[LogPosition, Mapping[str, str]]:
    """Return the position of a committed offset, and the group's own fields, from any metadata.

    Foreign metadata (Kafka's own tools leave it empty) means that an operator set the offset: the position has no
    proof. Plain milliseconds, written by the sink's earlier releases, become the field `since`.
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
