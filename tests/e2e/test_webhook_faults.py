"""What a receiver may do to the sink, and what the sink does then: no lead is lost, nothing comes sooner than asked."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import pytest

from nigredo.testing import Stack, eventually
from schemas.events import WebhookDead, WebhookRetry
from schemas.topics import WEBHOOK_DEAD, retry_topic
from tests.support.webhook_rig import TAKING, TRACEPARENT, Behaviour, Request, Sink, a_lead, answering, reset, sink

TIMEOUT_S = 1.0
FAULT_HOLDS_S = 30


@pytest.fixture(scope="module")
def mine(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sink]:
    with sink(stack, tmp_path_factory.mktemp("sink"), WEBHOOK_TIMEOUT_SECONDS=f"{TIMEOUT_S:g}") as found:
        found.start()
        yield found


@pytest.fixture(autouse=True)
def _healed(mine: Sink) -> Iterator[None]:
    yield
    mine.receiver.behaviour = TAKING


async def _rst(_: Request, writer: asyncio.StreamWriter) -> None:
    reset(writer)


async def _hang(_: Request, __: asyncio.StreamWriter) -> None:
    await asyncio.sleep(FAULT_HOLDS_S)


async def _drip_headers(_: Request, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 500 X\r\n")
    for number in range(300):
        writer.write(b"x-%d: y\r\n" % number)
        await writer.drain()
        await asyncio.sleep(0.1)


async def _drip_body(_: Request, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 500 X\r\nContent-Length: 300\r\n\r\n")
    for _unused in range(300):
        writer.write(b"x")
        await writer.drain()
        await asyncio.sleep(0.1)


async def _flood(_: Request, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 500 X\r\nContent-Length: 52428800\r\n\r\n")
    for _unused in range(800):
        writer.write(b"x" * 65536)
        await writer.drain()


FAULTS: dict[str, tuple[Behaviour, int | None, str]] = {
    "500": (answering(500, body=b"down, dear Ana Lima"), 500, "HTTP 500"),
    "503": (answering(503), 503, "HTTP 503"),
    "rst": (_rst, None, "ECONNRESET"),
    "hang": (_hang, None, "Connection timeout"),
    "dripped headers": (_drip_headers, None, "Connection timeout"),
    "dripped body": (_drip_body, None, "Connection timeout"),
    "50 MB": (_flood, 500, "HTTP 500"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_receiver_that_fails_gets_the_lead_again_and_holds_no_place_past_the_deadline(mine: Sink, fault: str) -> None:
    behaviour, status, error = FAULTS[fault]
    mine.receiver.behaviour = behaviour
    (lead_id,) = mine.leads(1)
    eventually(lambda: len(mine.receiver.of(lead_id)) >= 2, within_s=60, what="two attempts")

    mine.receiver.behaviour = TAKING

    eventually(lambda: mine.attempts(lead_id)[-1].outcome == "delivered", within_s=60, every_s=0.2, what="delivered")
    attempts = mine.attempts(lead_id)
    assert [attempt.attempt for attempt in attempts] == list(range(1, len(attempts) + 1))
    failed = [attempt for attempt in attempts if attempt.outcome == "retry"]
    assert len(failed) == len(attempts) - 1
    # On a machine that is busy any of them may be too late as well.
    told = {(attempt.status_code, (attempt.error_message or "").partition(":")[0]) for attempt in failed}
    assert any(code == status and error in text for code, text in told), told
    assert all(error in text or "Connection timeout" in text for _, text in told), told
    durations_ms = [attempt.duration_ms for attempt in failed]
    assert min(durations_ms) < TIMEOUT_S * 1000 + 4000
    assert max(durations_ms) < FAULT_HOLDS_S * 1000
    assert "token" not in attempts[0].webhook_url
    assert not any("Ana" in (attempt.answer_excerpt or "") for attempt in attempts)
    requests = mine.receiver.of(lead_id)
    assert len({request.body for request in requests}) == 1
    assert {request.headers["traceparent"].encode() for request in requests} == {TRACEPARENT}


def test_a_refused_connection_is_tried_again(mine: Sink) -> None:
    mine.receiver.refuse()
    (lead_id,) = mine.leads(1)
    try:
        eventually(lambda: len(mine.attempts(lead_id)) >= 2, within_s=60, every_s=0.2, what="two attempts")
    finally:
        mine.receiver.listen()

    eventually(lambda: mine.receiver.of(lead_id), within_s=60, what="the delivery")
    assert "ECONNREFUSED" in (mine.attempts(lead_id)[0].error_message or "")


def test_no_attempt_comes_sooner_than_a_receiver_asks(mine: Sink) -> None:
    asked_s = 7.0

    async def busy_once(request: Request, writer: asyncio.StreamWriter) -> None:
        first = len(mine.receiver.of(request.lead_id)) == 1
        await (answering(429, f"Retry-After: {asked_s:g}") if first else TAKING)(request, writer)

    mine.receiver.behaviour = busy_once
    (lead_id,) = mine.leads(1)

    first, second = eventually(
        lambda: found if len(found := mine.receiver.of(lead_id)) == 2 else None, within_s=60, what="both attempts"
    )

    assert second.at - first.at >= asked_s
    assert second.headers["nigredo-attempt"] == "2"


def test_one_that_is_gone_for_good_is_dead_at_once_with_the_reason(mine: Sink) -> None:
    is_well(mine)
    mine.receiver.behaviour = answering(410)
    partition = 1
    (lead_id,) = mine.leads(1, partition=partition)

    eventually(lambda: mine.receiver.of(lead_id), within_s=60, what="the attempt")
    dead = eventually(
        lambda: next(
            (d for (key, _), d in mine.standing(WEBHOOK_DEAD).items() if key == mine_key(mine, lead_id)), None
        ),
        within_s=60,
        every_s=0.2,
        what="the dead letter",
    )

    assert isinstance(dead, WebhookDead)
    assert (dead.reason, dead.status_code, dead.attempts, dead.endpoint) == ("refused", 410, 1, mine.name)
    assert dead.lead_partition == partition
    assert [attempt.outcome for attempt in mine.attempts(lead_id)] == ["dead"]


def test_a_redirect_is_not_followed(mine: Sink) -> None:
    is_well(mine)
    mine.receiver.behaviour = answering(302, f"Location: http://127.0.0.1:{mine.receiver.port}/elsewhere")
    (lead_id,) = mine.leads(1)

    eventually(lambda: mine.attempts(lead_id), within_s=60, every_s=0.2, what="the attempt")

    assert [(a.outcome, a.status_code) for a in mine.attempts(lead_id)] == [("dead", 302)]
    assert len(mine.receiver.of(lead_id)) == 1


def test_a_route_gone_wrong_opens_the_breaker_and_buries_next_to_nothing(mine: Sink) -> None:
    mine.receiver.behaviour = answering(401)
    taken = mine.leads(40)
    eventually(lambda: mine.health().get("breaker") == "open", within_s=60, what="the breaker is open")

    mine.receiver.behaviour = TAKING

    eventually(lambda: mine.health().get("breaker") == "closed", within_s=60, what="the breaker is closed")
    answered = eventually(
        lambda: done if len(done := delivered_or_dead(mine, taken)) == len(taken) else None,
        within_s=60,
        every_s=0.5,
        what="every lead",
    )
    # The first that is refused is not known to be one of many.
    assert list(answered.values()).count("dead") <= 1


@pytest.mark.thorough
def test_a_restart_in_a_run_of_refusals_gives_up_no_lead(mine: Sink) -> None:
    mine.receiver.behaviour = answering(401)
    before = mine.leads(3)
    eventually(lambda: all(mine.attempts(lead) for lead in before), within_s=60, every_s=0.2, what="the run")
    given_up = {lead for lead in before if mine.attempts(lead)[-1].outcome == "dead"}
    assert len(given_up) <= 1  # The first that is refused is not known to be one of many.

    for _ in range(2):
        mine.stop()
        mine.start()
        (lead_id,) = mine.leads(1)
        before.append(lead_id)
        eventually(lambda lead=lead_id: mine.attempts(lead), within_s=60, every_s=0.2, what="an attempt")  # type: ignore[misc]
    mine.receiver.behaviour = TAKING

    answered = eventually(
        lambda: done if len(done := delivered_or_dead(mine, before)) == len(before) else None,
        within_s=120,
        every_s=0.5,
        what="every lead",
    )
    assert {lead for lead, outcome in answered.items() if outcome == "dead"} == given_up


def test_a_spell_of_500s_costs_no_lead_and_the_receiver_is_asked_less_meanwhile(mine: Sink) -> None:
    """Five seconds of it, where a real one takes minutes: nothing in it changes after the breaker has opened."""
    mine.receiver.behaviour = answering(500)
    leads = mine.leads(100)
    eventually(lambda: mine.health().get("breaker") == "open", within_s=60, what="the breaker is open")
    eventually(lambda: mine.health().get("in_flight", 9) <= 1, within_s=60, what="nothing under way but a probe")
    opened = len(mine.receiver.requests)
    time.sleep(5)
    probes = len(mine.receiver.requests) - opened

    mine.receiver.behaviour = TAKING

    answered = eventually(
        lambda: done if len(done := delivered_or_dead(mine, leads)) == len(leads) else None,
        within_s=90,
        every_s=0.5,
        what="every lead",
    )
    assert set(answered.values()) == {"delivered"}
    assert probes <= 10, "no more than the attempts that were under way, and probes a second and more apart"


@pytest.mark.thorough
def test_a_lead_that_waits_long_is_in_nobodys_way(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> None:
    """It waits in a retry topic: the offsets of the leads pass it, and a restart changes nothing."""
    folder = tmp_path_factory.mktemp("poison")
    with sink(stack, folder, WEBHOOK_RETRY_SCHEDULE=f"0.2s{',13s' * 4}") as mine:
        lead = a_lead()
        poison = str(lead.id)

        async def poisonous(request: Request, writer: asyncio.StreamWriter) -> None:
            await (answering(500) if request.lead_id == poison else TAKING)(request, writer)

        mine.receiver.behaviour = poisonous
        mine.start()
        mine.write(lead, partition=0)
        others = mine.leads(50, partition=0)
        topic, place = retry_topic(mine.name, "1m"), (poison.encode(), 0)

        eventually(lambda: set(others) <= set(mine.receiver.ids()), within_s=60, what="the others")
        eventually(lambda: mine.standing(topic).get(place), within_s=60, every_s=0.2, what="the retry")
        eventually(lambda: mine.committed()[0] == mine.ends()[0], within_s=60, every_s=0.2, what="the offsets pass it")
        mine.stop()
        waits = mine.standing(topic)[place]
        assert isinstance(waits, WebhookRetry)
        made = waits.attempts  # 2, or more where the leads took longer than the wait
        assert mine.receiver.of(poison)[-1].headers["nigredo-attempt"] == str(made)
        mine.receiver.behaviour = TAKING
        mine.start()
        eventually(lambda: len(mine.receiver.of(poison)) > made, within_s=60, what="sent")

        before, last = mine.receiver.of(poison)[-2:]
        assert made >= 2
        assert last.at - before.at >= 13 * 0.8
        assert last.headers["nigredo-attempt"] == str(made + 1)
        eventually(lambda: place not in mine.standing(topic), within_s=60, every_s=0.2, what="the tombstone")
        assert [m.partition() for m in mine.records(topic) if m.key() == poison.encode()] == [0] * made


def is_well(mine: Sink) -> None:
    """Let the endpoint take a lead, so that what comes next is not one of many that fail."""
    (lead_id,) = mine.leads(1)

    def taken() -> bool:
        return bool(found := mine.attempts(lead_id)) and found[-1].outcome == "delivered"

    eventually(taken, within_s=60, every_s=0.2, what="a delivery")


def mine_key(mine: Sink, lead_id: str) -> bytes:
    return f"{lead_id}:{mine.name}".encode()


def delivered_or_dead(mine: Sink, lead_ids: list[str]) -> dict[str, str]:
    """Return what became of the leads of which that can be told."""
    codec = mine.codec
    found: dict[str, str] = {}
    for message in mine.records("nigredo.deliveries"):
        attempt = codec.decode("nigredo.deliveries", message.value() or b"")
        if attempt.endpoint == mine.name and attempt.outcome != "retry":  # type: ignore[union-attr]
            found[str(attempt.lead_id)] = attempt.outcome  # type: ignore[union-attr]
    return {lead_id: found[lead_id] for lead_id in lead_ids if lead_id in found}
