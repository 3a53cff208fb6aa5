"""Lost and replaced logs: the records processed, the errors reported, and the position that stays stored as evidence.

Faust and the log are fakes (`tests/support/fake_faust.py`); the comparison of positions is the real one.
"""

from __future__ import annotations

import asyncio

import pytest
from structlog.testing import capture_logs

from nigredo.backoff import Backoff
from nigredo.kafka.positions.log_trail import BURST_S
from nigredo.log_position import Finding, LogPosition, Mark, compare
from nigredo.observability import metrics
from processors.engine import probe, stream_processor
from tests.support.fake_faust import TIMESTAMP_MS, TOPIC, Rig, handled, until


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Backoff, "next_wait_s", lambda _: 0.001)
    monkeypatch.setattr(stream_processor, "SETTLE_S", 0.3)
    monkeypatch.setattr(stream_processor, "COMMIT_EVERY_S", 0.01)
    monkeypatch.setattr(probe, "EVERY_S", 0.02)


def position(next_offset: int, key: bytes = b"k", topic_id: str = "first") -> LogPosition:
    return LogPosition(next_offset, topic_id, Mark.of(next_offset - 1, TIMESTAMP_MS, key))


def strict(rig: Rig) -> None:
    """Make the handler refuse positions that the log contradicts, as the limiter does."""

    def refuse(_: int, committed: LogPosition | None) -> str | None:
        if committed is None:
            return "no offset"
        now = rig.log.now(TOPIC, 0, committed.asks_at, deadline_s=1)
        finding = compare(committed, now)
        return None if finding.believed else f"refused: {finding.value}"

    rig.handler.refuse = refuse


async def handle(rig: Rig, *offsets: int) -> asyncio.Task[None]:
    """Start the agent, deliver these offsets and wait until they are committed."""
    rig.deliver(*offsets)
    agent = rig.start()
    await rig.app.on_rebalance_complete.send()
    await until(lambda: rig.app.committed() == offsets[-1] + 1)
    return agent


async def end(rig: Rig, agent: asyncio.Task[None]) -> None:
    agent.cancel()
    await asyncio.wait({agent})
    await rig.app.on_before_shutdown.send()


STORED_FOR_ANOTHER_LOG = [
    (position(101), Finding.PAST_END),
    (position(50, key=b"another"), Finding.OTHER_RECORD),
    (position(50, topic_id="another"), Finding.OTHER_TOPIC),
]


@pytest.mark.parametrize(
    ("stored", "finding"), STORED_FOR_ANOTHER_LOG, ids=lambda value: str(getattr(value, "value", ""))
)
def test_a_partition_whose_position_is_not_the_logs_is_stopped_and_the_others_go_on(
    stored: LogPosition, finding: Finding
) -> None:
    async def scenario() -> Rig:
        rig = Rig(partitions=2)
        strict(rig)
        rig.app.commits.append({tp: stored for tp in rig.app.assignment() if tp.partition == 1})
        rig.deliver(stored.next_offset, partition=1)
        rig.deliver(0, 1, partition=0)
        await rig.app.on_rebalance_complete.send()
        await rig.drain()
        await until(lambda: rig.app.committed(0) == 2)
        assert rig.health.held == {f"{TOPIC}[1]": f"refused: {finding.value}"}
        assert rig.health.waiting_for == f"refused: {finding.value}"
        assert metrics.PARTITIONS_STOPPED.of(TOPIC)._value.get() == 1
        assert {tp.partition for tp in rig.in_order.positions or {}} == {0}, "the watchdog leaves a stopped one alone"
        await rig.app.on_before_shutdown.send()
        return rig

    rig = asyncio.run(scenario())
    assert rig.handler.done == [(0, 0), (0, 1)]
    assert rig.app.position(1) == stored, "the evidence of the loss"


def test_a_partition_stays_stopped_when_the_log_grows_and_the_process_restarts() -> None:
    stored = position(101)

    async def run(end: int) -> Rig:
        rig = Rig()
        strict(rig)
        rig.log.end = end
        rig.log.keys = dict.fromkeys(range(80, 200), b"other")
        rig.app.commits.append(dict.fromkeys(rig.app.assignment(), stored))
        rig.deliver(101, 102)
        await rig.app.on_rebalance_complete.send()
        await rig.drain()
        await rig.app.on_before_shutdown.send()
        return rig

    short, grown = asyncio.run(run(90)), asyncio.run(run(150))

    assert short.health.waiting_for == "refused: past_end"
    assert grown.health.waiting_for == "refused: other_record"
    assert handled(short) == handled(grown) == []
    assert short.app.position() == grown.app.position() == stored


def test_a_tail_lost_and_rewritten_while_the_process_runs_is_found_although_a_later_record_fits() -> None:
    """The broker returns with a shorter log, which grows past the next offset before any record is fetched."""

    async def scenario() -> Rig:
        rig = Rig()
        strict(rig)
        agent = await handle(rig, *range(10))
        await until(lambda: rig.log.confirmed > 0)
        rig.log.away = True
        rig.log.cut(7, grown_to=12)
        rig.log.epoch -= 1  # A disk restored to an earlier state repeats the epoch.
        await asyncio.sleep(BURST_S)  # A broker takes longer than this to restart.
        rig.deliver(10, 11)
        await until(lambda: rig.app.committed() == 12)
        rig.log.away = False
        await until(lambda: bool(rig.health.held))
        await end(rig, agent)
        return rig

    rig = asyncio.run(scenario())
    stored = rig.app.position()
    assert rig.health.waiting_for is not None
    assert stored == position(10), "not a later position, which the new log would confirm"
    assert compare(stored, rig.log.now(TOPIC, 0, 9, deadline_s=1)) is Finding.OTHER_RECORD


@pytest.mark.parametrize("how", ["cut", "made_again"])
def test_a_handler_that_accepts_the_changed_log_continues_from_the_position_it_returns(how: str) -> None:
    """The persister does so, because its writes are idempotent."""

    async def scenario() -> Rig:
        rig = Rig()
        agent = await handle(rig, *range(10))
        await until(lambda: rig.log.confirmed > 0)

        async def begin(*_: object) -> LogPosition:
            return LogPosition(0, rig.log.topic_id)

        rig.handler.begin = begin  # type: ignore[method-assign]
        rig.log.cut(4, grown_to=5)
        if how == "made_again":
            rig.log.topic_id = "second"
        await until(lambda: rig.app.seeks[-1:] == [(next(iter(rig.app.assignment())), 0)])
        rig.deliver(*range(5))
        await until(lambda: len(rig.handler.done) == 15)
        await until(lambda: rig.app.committed() == 5)
        assert rig.health.held == {}
        await end(rig, agent)
        return rig

    rig = asyncio.run(scenario())
    assert handled(rig) == [*range(10), *range(5)]
    assert rig.handler.put_back_to[-1:] == [position(10)]


def test_a_restarted_broker_that_lost_nothing_changes_nothing() -> None:
    async def scenario() -> Rig:
        rig = Rig()
        strict(rig)
        agent = await handle(rig, 0, 1, 2)
        rig.log.away = True
        await until(lambda: rig.health.waiting_for == "Kafka does not answer")
        rig.log.away, rig.log.epoch = False, 2
        await until(lambda: rig.health.waiting_for is None)
        rig.deliver(3)
        await until(lambda: rig.app.committed() == 4)
        await end(rig, agent)
        return rig

    rig = asyncio.run(scenario())
    assert handled(rig) == [0, 1, 2, 3]
    assert rig.handler.revocations == 0


def test_a_position_without_a_proof_gets_one_when_its_partition_starts() -> None:
    async def scenario() -> Rig:
        rig = Rig()
        await rig.app.on_rebalance_complete.send()
        await until(lambda: rig.app.position() is not None)
        await rig.app.on_before_shutdown.send()
        return rig

    assert asyncio.run(scenario()).app.position() == LogPosition(0, "first")


def test_unassigned_partitions_are_reported_and_timed_for_the_watchdog() -> None:
    async def scenario() -> tuple[str | None, float, str | None]:
        rig = Rig()
        rig.log.unassigned = [(TOPIC, number) for number in range(1, 7)]
        await rig.app.on_rebalance_complete.send()
        await until(lambda: rig.in_order.unassigned_s() >= 2 * probe.EVERY_S)
        reported, gauge = rig.health.waiting_for, metrics.PARTITIONS_UNASSIGNED.of(TOPIC)._value.get()
        rig.log.unassigned = []
        await until(lambda: rig.in_order.unassigned_s() == 0)
        after = rig.health.waiting_for
        await rig.app.on_before_shutdown.send()
        return reported, gauge, after

    reported, gauge, after = asyncio.run(scenario())
    named = ", ".join(f"{TOPIC}[{number}]" for number in range(1, 5))
    assert reported == f"no member of the group has {named} and 2 more"
    assert gauge == 6
    assert after is None


def test_a_missing_topic_is_named_in_the_health() -> None:
    async def scenario() -> str | None:
        rig = Rig()
        await rig.app.on_rebalance_complete.send()
        await until(lambda: rig.health.waiting_for is None)
        rig.log.missing = [TOPIC]
        await until(lambda: rig.health.waiting_for is not None)
        reported = rig.health.waiting_for
        rig.log.missing = []
        await until(lambda: rig.health.waiting_for is None)
        await rig.app.on_before_shutdown.send()
        return reported

    assert asyncio.run(scenario()) == f"there is no topic {TOPIC}"


def test_a_repeated_record_makes_the_probe_check_the_log_early(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "EVERY_S", 3600.0)
    monkeypatch.setattr(probe, "RECHECK_DELAY_S", 0.0)

    async def scenario() -> Rig:
        rig = Rig()
        strict(rig)
        agent = await handle(rig, 0, 1, 2)
        rig.log.cut(1, grown_to=2)
        rig.deliver(0)
        await until(lambda: bool(rig.health.held))
        await end(rig, agent)
        return rig

    with capture_logs() as logs:
        rig = asyncio.run(scenario())
    assert handled(rig) == [0, 1, 2]
    assert "log contradicts a processed position" in [line["event"] for line in logs]
