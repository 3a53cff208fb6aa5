"""Spool: entries survive a crash, in order, within the bound."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from ingest.publishing.spool import OVERHEAD_BYTES, REFUSED_KEPT_S, Entry, Spool, SpoolFull
from nigredo.errors import StartRefused

MAX_BYTES = 4000


def on_disk(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def entry(value: bytes, key: bytes = b"192.0.2.1") -> Entry:
    return Entry(key, value, [("ce_id", b"\x00\xff"), ("ce_type", b"lead.submitted")])


async def opened(folder: Path, max_bytes: int = MAX_BYTES) -> Spool:
    spool = Spool(folder, max_bytes)
    await spool.open()
    return spool


async def values(spool: Spool) -> list[bytes]:
    return [spooled.entry.value for spooled in await spool.first()]


class SpoolMachine(RuleBasedStateMachine):
    """Puts, drains, crashes and full spools in any order: nothing acknowledged is lost, and order is kept."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.folder = Path(tempfile.mkdtemp(prefix="nigredo-spool-"))
        self.homes = [self.folder / "0"]
        self.spool = self.run(opened(self.homes[0]))
        self.expected: list[Entry] = []
        self.made = 0

    def run(self, coroutine: object) -> object:
        return self.loop.run_until_complete(asyncio.wait_for(coroutine, 20))  # type: ignore[arg-type]

    @rule(sizes=st.lists(st.integers(0, 1200), min_size=1, max_size=5))
    def put_together(self, sizes: list[int]) -> None:
        async def put() -> None:
            waiting = []
            for size in sizes:
                self.made += 1
                new = entry(b"%d " % self.made + b"x" * size, key=b"net-%d" % (size % 3))
                room = MAX_BYTES - sum(known.size_bytes for known in self.expected)
                if new.size_bytes <= room:
                    waiting.append(self.spool.put(new))
                    self.expected.append(new)
                else:
                    with pytest.raises(SpoolFull):
                        self.spool.put(new)
            numbers = await asyncio.gather(*waiting)
            assert numbers == sorted(set(numbers))

        self.run(put())

    @precondition(lambda self: self.expected)
    @rule(count=st.integers(1, 4))
    def drain(self, count: int) -> None:
        async def drain() -> None:
            found = (await self.spool.first())[:count]
            assert [spooled.entry for spooled in found] == self.expected[:count]
            await self.spool.remove([spooled.number for spooled in found])
            del self.expected[: len(found)]

        self.run(drain())

    @precondition(lambda self: self.expected)
    @rule(data=st.data())
    def remove_one_in_the_middle(self, data: st.DataObject) -> None:
        async def remove() -> None:
            at = data.draw(st.integers(0, len(self.expected) - 1))
            spooled = (await self.spool.first())[at]
            await self.spool.remove([spooled.number])
            await self.spool.remove([spooled.number])  # A second removal changes nothing.
            del self.expected[at]

        self.run(remove())

    @rule()
    def crash(self) -> None:
        """A killed process leaves its files as they are, and no lock."""
        left = self.homes[-1]
        self.homes.append(self.folder / str(len(self.homes)))
        shutil.copytree(left, self.homes[-1])
        self.run(self.spool.close())
        self.spool = self.run(opened(self.homes[-1]))

    @rule()
    def restart(self) -> None:
        self.run(self.spool.close())
        self.spool = self.run(opened(self.homes[-1]))

    @invariant()
    def what_was_acknowledged_is_there_in_order_and_counted(self) -> None:
        found = self.run(self.spool.first())
        assert [spooled.entry for spooled in found] == self.expected
        assert self.spool.records == len(self.expected)
        assert self.spool.bytes == sum(known.size_bytes for known in self.expected) <= MAX_BYTES
        assert self.spool.empty == (not self.expected)
        assert (self.spool.oldest_age_s > 0) == bool(self.expected)

    def teardown(self) -> None:
        self.run(self.spool.close())
        self.loop.close()
        shutil.rmtree(self.folder)


TestSpoolMachine = SpoolMachine.TestCase
TestSpoolMachine.settings = settings(max_examples=15, stateful_step_count=15, deadline=None)


def test_many_that_are_put_at_once_share_one_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> list[int]:
        spool = await opened(tmp_path, 10_000_000)
        batches: list[int] = []
        add = spool._add
        monkeypatch.setattr(spool, "_add", lambda entries: (batches.append(len(entries)), add(entries))[1])
        await asyncio.gather(*(spool.put(entry(b"%d" % n)) for n in range(300)))
        await spool.close()
        return batches

    assert asyncio.run(work()) == [300]


def test_a_file_belongs_to_one_at_a_time_and_what_nobody_holds_is_taken_over(tmp_path: Path) -> None:
    async def work() -> None:
        first, second = await opened(tmp_path), await opened(tmp_path)
        await first.put(entry(b"first"))
        await second.put(entry(b"second"))
        assert (await values(first), await values(second)) == ([b"first"], [b"second"])
        await second.close()

        # The next spool finds the first file locked, and takes the second with its entries.
        third = await opened(tmp_path)
        assert await values(third) == [b"second"]
        await third.close()
        await first.close()

        # Fewer workers than before: one takes all entries, and the other file is left empty.
        alone = await opened(tmp_path)
        assert await values(alone) == [b"first", b"second"]
        assert alone.records == 2
        await alone.close()
        assert {"spool-0.sqlite", "spool-1.sqlite"} <= set(on_disk(tmp_path))

    asyncio.run(work())


def test_nothing_of_what_was_drained_is_left_on_disk(tmp_path: Path) -> None:
    async def work() -> None:
        spool = await opened(tmp_path, 10_000_000)
        await asyncio.gather(*(spool.put(entry(b"a person's message " * 100)) for _ in range(1000)))
        assert any(b"a person's message" in content for content in on_disk(tmp_path).values())
        while found := await spool.first():
            await spool.remove([spooled.number for spooled in found])
        left = on_disk(tmp_path)
        assert not [name for name, content in left.items() if b"a person's message" in content]
        assert sum(map(len, left.values())) < 100_000
        await spool.close()

    asyncio.run(work())


def test_only_its_owner_can_read_it(tmp_path: Path) -> None:
    async def work() -> None:
        spool = await opened(tmp_path / "spool")
        await spool.put(entry(b"x"))
        modes.extend(file.stat().st_mode & 0o077 for file in [folder, *folder.iterdir()])
        await spool.close()

    folder, modes = tmp_path / "spool", []  # type: tuple[Path, list[int]]
    asyncio.run(work())
    assert len(modes) > 1
    assert set(modes) == {0}


def test_a_disk_that_is_full_refuses_and_loses_nothing_that_was_taken(tmp_path: Path) -> None:
    async def work() -> None:
        spool = await opened(tmp_path, 10_000_000)
        await spool.put(entry(b"taken"))
        await asyncio.get_running_loop().run_in_executor(
            spool._thread, lambda: spool._db.execute("PRAGMA max_page_count = 5")
        )
        with pytest.raises(SpoolFull):
            await spool.put(entry(b"x" * 100_000))
        assert (await values(spool), spool.records) == ([b"taken"], 1)
        assert spool.bytes == entry(b"taken").size_bytes
        await spool.put(entry(b"and one more"))
        await spool.close()

    asyncio.run(work())


def test_what_kafka_can_never_take_is_kept_out_of_the_way(tmp_path: Path) -> None:
    async def work() -> None:
        spool = await opened(tmp_path)
        number = await spool.put(entry(b"poison"))
        await spool.put(entry(b"good"))
        await spool.quarantine(number)
        assert (await values(spool), spool.records) == ([b"good"], 1)
        await spool.close()
        again = await opened(tmp_path)
        assert (await values(again), again.records) == ([b"good"], 1)
        assert again.bytes == entry(b"poison").size_bytes + entry(b"good").size_bytes
        await again.close()

    asyncio.run(work())
    with sqlite3.connect(tmp_path / "spool-0.sqlite") as db:
        assert db.execute("SELECT value FROM spool WHERE refused").fetchall() == [(b"poison",)]


def test_what_kafka_can_never_take_is_gone_after_a_month_and_what_waits_is_not(
    tmp_path: Path,
) -> None:
    async def work() -> None:
        spool = await opened(tmp_path)
        numbers = [await spool.put(entry(value)) for value in (b"poison of old", b"poison", b"patient")]
        for number in numbers[:2]:
            await spool.quarantine(number)
        assert spool.refused == 2
        await spool.close()
        with closing(sqlite3.connect(tmp_path / "spool-0.sqlite", isolation_level=None)) as db:
            db.execute("UPDATE spool SET at = at - ? WHERE number != ?", (REFUSED_KEPT_S + 1, numbers[1]))
        again = await opened(tmp_path)
        assert again.refused == 2
        await again.delete_expired_refusals()
        assert (again.refused, again.records, await values(again)) == (1, 1, [b"patient"])
        assert again.bytes == entry(b"poison").size_bytes + entry(b"patient").size_bytes
        await again.close()

    asyncio.run(work())
    assert b"poison of old" not in b"".join(on_disk(tmp_path).values())


def test_the_month_of_what_kafka_can_never_take_begins_when_that_is_known(tmp_path: Path) -> None:
    async def work() -> None:
        spool = await opened(tmp_path)
        number = await spool.put(entry(b"poison"))
        await spool.close()
        with closing(sqlite3.connect(tmp_path / "spool-0.sqlite", isolation_level=None)) as db:
            db.execute("UPDATE spool SET at = at - ?", (REFUSED_KEPT_S + 1,))
        again = await opened(tmp_path)
        await again.quarantine(number)
        await again.delete_expired_refusals()
        assert again.refused == 1
        await again.close()

    asyncio.run(work())


def test_a_file_that_is_no_spool_stops_the_start_and_is_named(tmp_path: Path) -> None:
    (tmp_path / "spool-0.sqlite").write_bytes(b"not a database, but long enough to be looked at as one" * 100)

    with pytest.raises(StartRefused, match=r"spool-0\.sqlite.*move it away"):
        asyncio.run(opened(tmp_path))


KILLED = """
import asyncio, os, sys
from pathlib import Path
from ingest.publishing.spool import Entry, Spool

async def work():
    spool = Spool(Path(sys.argv[1]), 10_000_000)
    await spool.open()
    for number in range(1000):
        await spool.put(Entry(b"k", b"%d" % number, []))
        print(number, flush=True)
        if number == 50:
            os.kill(os.getpid(), 9)

asyncio.run(work())
"""


def test_what_was_put_survives_kill_9(tmp_path: Path) -> None:
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path)], capture_output=True, text=True, timeout=60, check=False
    )
    assert killed.returncode == -9
    acknowledged = [line.encode() for line in killed.stdout.split()]

    async def work() -> list[bytes]:
        spool = await opened(tmp_path)
        try:
            return await values(spool)
        finally:
            await spool.close()

    assert len(acknowledged) == 51
    assert asyncio.run(work()) == acknowledged


def test_an_entry_counts_with_its_headers() -> None:
    assert Entry(b"kk", b"vvv", [("h", b"1234")]).size_bytes == 2 + 3 + 5 + OVERHEAD_BYTES


def test_whatever_goes_wrong_in_writing_nobody_waits_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> None:
        raise MemoryError

    async def work() -> None:
        spool = await opened(tmp_path)
        monkeypatch.setattr(spool, "_add", fail)
        with pytest.raises(SpoolFull):
            await asyncio.wait_for(spool.put(entry(b"one")), 5)
        assert (spool.bytes, spool.records) == (0, 0)
        monkeypatch.undo()
        await spool.put(entry(b"two"))
        assert await values(spool) == [b"two"]
        await spool.close()

    asyncio.run(work())
