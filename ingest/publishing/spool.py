"""Spool: submissions on disk while Kafka does not accept them, a bounded queue in one SQLite file, each put fsynced.

A file belongs to one process at a time by SQLite's own lock, which the kernel releases when the process dies. So
several workers share a folder, and a worker that starts takes over the files of workers that ended. For the choice of
SQLite see docs/adr/0012-a-spool-for-a-kafka-that-is-away.md.
"""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from nigredo.errors import DependencyDown, StartRefused
from nigredo.kafka.publisher import Headers
from nigredo.observability.logs import get_logger
from schemas.immutable import immutable

log = get_logger()

FILES_MAX = 1000
OVERHEAD_BYTES = 64
"""Approximate size of a row beside its record."""
BATCH_MAX = 500
BATCH_MAX_BYTES = 4 * 1024 * 1024
SHRINK_ABOVE_PAGES = 256
REFUSED_KEPT_S = 30 * 24 * 3600.0
"""The retention of every other refused submission, because a submission is personal data that no operator may need."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS spool (
    number INTEGER PRIMARY KEY, at REAL NOT NULL, bytes INTEGER NOT NULL,
    key BLOB NOT NULL, value BLOB NOT NULL, headers TEXT NOT NULL, refused INTEGER NOT NULL DEFAULT 0
)"""


class SpoolFull(DependencyDown):
    """The spool or its disk is full, or the file cannot be written; the client is to retry later."""


@immutable
class Entry:
    """A record for the topic of submissions, as it was first made: a retry keeps its id and its times."""

    key: bytes
    value: bytes
    headers: Headers

    @property
    def size_bytes(self) -> int:
        """Size in bytes counted against INGEST_SPOOL_MAX_BYTES: key, value, headers and the row's overhead."""
        headers = sum(map(len, chain.from_iterable(self.headers)))
        return len(self.key) + len(self.value) + headers + OVERHEAD_BYTES


class Spooled(NamedTuple):
    """An entry in the spool and its number, which `remove` takes; numbers grow."""

    number: int
    entry: Entry


class Spool:
    """The queue of one worker. Belongs to the event loop it is opened in; the file is accessed in one thread only."""

    def __init__(self, folder: Path, max_bytes: int, *, largest_bytes: int = 0) -> None:
        """largest_bytes: the largest possible entry, for `has_room` only."""
        self._folder = folder
        self._largest_bytes = largest_bytes
        self._max_bytes = max_bytes
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="spool")
        self._db: sqlite3.Connection
        self._waiting: list[tuple[Entry, asyncio.Future[int]]] = []
        self._writing: asyncio.Task[None] | None = None
        self._writing_count = 0
        self._oldest_at: float | None = None
        self._last = 0
        self.records = 0
        """Entries on disk that wait for Kafka."""
        self.bytes = 0
        """Size in bytes of the entries on disk, of those being written, and of those in quarantine."""
        self.refused = 0
        """Entries in quarantine, which Kafka can never accept."""

    async def open(self) -> None:
        """Lock the first free file, and move the entries of all other free files into it.

        Raises StartRefused when no file is free, or one cannot be used.
        """
        await asyncio.get_running_loop().run_in_executor(self._thread, self._open)

    def _open(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        own: sqlite3.Connection | None = None
        for file in (self._folder / f"spool-{number}.sqlite" for number in range(FILES_MAX)):
            # After the first free file only existing files matter: they may hold entries.
            if own is not None and not file.exists():
                continue
            db = _open_locked(file)
            if db is None:
                continue
            if own is None:
                own = db
            else:
                _take_over(own, db)
                db.close()
        if own is None:
            raise StartRefused(f"no file for a spool in {self._folder} is free")
        self._db = own
        self.records, self.bytes, self._oldest_at, self._last, self.refused = own.execute(
            "SELECT count(*) FILTER (WHERE NOT refused), coalesce(sum(bytes), 0), min(at) FILTER (WHERE NOT refused),"
            " coalesce(max(number), 0), count(*) FILTER (WHERE refused) FROM spool"
        ).fetchone()

    @property
    def empty(self) -> bool:
        """Whether no entry waits on disk or is being written."""
        return self.records == 0 and not self.writing

    @property
    def writing(self) -> bool:
        """Whether an entry was put and is not on disk yet."""
        return bool(self._waiting) or self._writing_count > 0

    async def written(self) -> None:
        """Wait until every entry that was put is on disk, or failed."""
        while self._writing is not None:
            await asyncio.wait({self._writing})

    @property
    def has_room(self) -> bool:
        """Whether one more entry of the largest size fits."""
        return self.bytes + self._largest_bytes <= self._max_bytes

    @property
    def oldest_age_s(self) -> float:
        """Age of the oldest waiting entry in seconds; 0 when none waits."""
        return 0.0 if self._oldest_at is None else max(0.0, time.time() - self._oldest_at)

    def put(self, entry: Entry) -> asyncio.Future[int]:
        """Add an entry; the future resolves to its number once it is fsynced, and may fail with SpoolFull.

        Entries that are put during a write share the next fsync. Raises SpoolFull at once past the bound.
        """
        if self.bytes + entry.size_bytes > self._max_bytes:
            raise SpoolFull("the spool is full")
        self.bytes += entry.size_bytes
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._waiting.append((entry, future))
        if self._writing is None:
            self._writing = asyncio.create_task(self._write_all())
        return future

    async def _write_all(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._waiting:
                batch, self._waiting = self._waiting, []
                self._writing_count = len(batch)
                try:
                    numbers = await loop.run_in_executor(self._thread, self._add, [entry for entry, _ in batch])
                except Exception as error:
                    # Every exception, because a request waits for each future. SQLite's texts quote no row.
                    reason = str(error) if isinstance(error, sqlite3.Error) else None
                    log.error("the spool cannot be written", error=type(error).__name__, reason=reason)
                    self.bytes -= sum(entry.size_bytes for entry, _ in batch)
                    for _, future in batch:
                        if not future.done():
                            future.set_exception(SpoolFull("the spool cannot be written"))
                    continue
                finally:
                    self._writing_count = 0
                self.records += len(batch)
                for number, (_, future) in zip(numbers, batch, strict=True):
                    if not future.done():
                        future.set_result(number)
        finally:
            self._writing = None

    async def first(self) -> Sequence[Spooled]:
        """Return the oldest entries in the order of `put`: up to BATCH_MAX, and about BATCH_MAX_BYTES."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._first)

    async def remove(self, numbers: Sequence[int]) -> None:
        """Delete entries that Kafka acknowledged; they are overwritten on disk."""
        await self._change("DELETE FROM spool WHERE number = ? AND NOT refused", numbers, frees=True)

    async def quarantine(self, number: int) -> None:
        """Set an entry aside that Kafka can never accept; an operator may look at it in the file for 30 days."""
        now = "(julianday('now') - 2440587.5) * 86400.0"
        statement = f"UPDATE spool SET refused = 1, at = {now} WHERE number = ? AND NOT refused"  # noqa: S608 - constants
        changed = await self._change(statement, [number], frees=False)
        self.refused += changed

    async def delete_expired_refusals(self) -> None:
        """Delete expired entries from quarantine, as the retention of refused submissions does in the database."""
        if self.refused:
            deleted, freed = await asyncio.get_running_loop().run_in_executor(self._thread, self._delete_expired)
            self.refused -= deleted
            self.bytes -= freed

    async def _change(self, statement: str, numbers: Sequence[int], *, frees: bool) -> int:
        loop = asyncio.get_running_loop()
        changed, freed = await loop.run_in_executor(self._thread, self._apply, statement, numbers)
        self.records -= changed
        if frees:
            self.bytes -= freed
        return changed

    async def close(self) -> None:
        """Wait until every entry is written, and release the file. Its entries are drained after the next start."""
        await self.written()
        with suppress(sqlite3.Error):
            await asyncio.get_running_loop().run_in_executor(self._thread, self._db.close)
        self._thread.shutdown(wait=False)

    # --- called in the spool's thread ---------------------------------------------------------------------------------

    def _add(self, entries: Sequence[Entry]) -> Sequence[int]:
        now = time.time()
        rows = [(n, now, entry.size_bytes, *_as_row(entry)) for n, entry in enumerate(entries, self._last + 1)]
        with _transaction(self._db):
            self._db.executemany(
                "INSERT INTO spool (number, at, bytes, key, value, headers) VALUES (?, ?, ?, ?, ?, ?)", rows
            )
        # Counted here instead of in the file, so that a number is not reused even when the queue was empty.
        self._last += len(rows)
        if self._oldest_at is None:
            self._oldest_at = now
        return [row[0] for row in rows]

    def _first(self) -> Sequence[Spooled]:
        found: list[Spooled] = []
        size = 0
        query = "SELECT number, bytes, key, value, headers FROM spool WHERE NOT refused ORDER BY number LIMIT ?"
        for number, row_bytes, key, value, headers in self._db.execute(query, (BATCH_MAX,)):
            size += row_bytes
            if found and size > BATCH_MAX_BYTES:
                break
            found.append(Spooled(number, Entry(key, value, _headers(headers))))
        return found

    def _apply(self, statement: str, numbers: Sequence[int]) -> tuple[int, int]:
        changed = freed = 0
        with _transaction(self._db):
            for number in numbers:
                ((size,),) = self._db.execute("SELECT coalesce(sum(bytes), 0) FROM spool WHERE number = ?", (number,))
                if self._db.execute(statement, (number,)).rowcount:
                    changed, freed = changed + 1, freed + size
        row = self._db.execute("SELECT at FROM spool WHERE NOT refused ORDER BY number LIMIT 1").fetchone()
        self._oldest_at = None if row is None else row[0]
        if row is None:
            self._shrink()
        return changed, freed

    def _delete_expired(self) -> tuple[int, int]:
        before = (time.time() - REFUSED_KEPT_S,)
        sizes = "SELECT count(*), coalesce(sum(bytes), 0) FROM spool WHERE refused AND at < ?"
        ((records, freed),) = self._db.execute(sizes, before)
        if records:
            self._db.execute("DELETE FROM spool WHERE refused AND at < ?", before)
            self._shrink()
            log.warning("expired submissions deleted from the spool's quarantine", records=records)
        return records, freed

    def _shrink(self) -> None:
        """Return free pages to the disk and empty the write-ahead log, so that no deleted data stays in it.

        A failure is only logged and retried after the next change: shrinking needs room on the disk itself, and the
        change before it is committed.
        """
        try:
            ((pages,),) = self._db.execute("PRAGMA page_count")
            if pages > SHRINK_ABOVE_PAGES:
                self._db.execute("VACUUM")
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        except sqlite3.Error as error:
            log.warning("spool file not shrunk", error=str(error))


def _open_locked(file: Path) -> sqlite3.Connection | None:
    """Open and lock a spool's file; None when another process has it locked. Raises StartRefused."""
    with suppress(FileExistsError):
        os.close(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    db = sqlite3.connect(file, timeout=0, isolation_level=None, check_same_thread=False)
    try:
        # One writer holds the lock until it ends: no shared memory, and the kernel releases the lock.
        db.execute("PRAGMA locking_mode = EXCLUSIVE")
        db.execute("PRAGMA journal_mode = WAL")
        # With the write-ahead log a commit is one fsync; only FULL waits for it.
        db.execute("PRAGMA synchronous = FULL")
        db.execute("PRAGMA secure_delete = ON")
        db.execute("BEGIN EXCLUSIVE")
        db.execute(_SCHEMA)
        db.execute("COMMIT")
    except sqlite3.OperationalError as error:
        db.close()
        if error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY:
            return None
        raise StartRefused(f"the spool {file} cannot be used: {error}") from error
    except sqlite3.DatabaseError as error:
        db.close()
        raise StartRefused(f"the spool {file} cannot be read ({error}); move it away to start without it") from error
    return db


def _take_over(own: sqlite3.Connection, other: sqlite3.Connection) -> None:
    """Move the entries of another file to ours. A crash in between leaves them in both, and they are sent twice."""
    columns = "at, bytes, key, value, headers, refused"
    ((records,),) = other.execute("SELECT count(*) FROM spool")
    if not records:
        return
    rows = other.execute(f"SELECT {columns} FROM spool ORDER BY number")  # noqa: S608 - constants
    with _transaction(own):
        own.executemany(f"INSERT INTO spool ({columns}) VALUES (?, ?, ?, ?, ?, ?)", rows)  # noqa: S608
    with _transaction(other):
        other.execute("DELETE FROM spool")
    other.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    log.info("abandoned spool file taken over", records=records)


@contextmanager
def _transaction(db: sqlite3.Connection) -> Iterator[None]:
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        # SQLite may have rolled back by itself, as after a full disk.
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


def _as_row(entry: Entry) -> tuple[bytes, bytes, str]:
    headers = [[name, value.decode("latin-1")] for name, value in entry.headers]
    return entry.key, entry.value, json.dumps(headers)


def _headers(text: str) -> Headers:
    return [(name, value.encode("latin-1")) for name, value in json.loads(text)]
