"""What operators do to a sink while it runs: pause, replay, set offsets, change secrets, add endpoints."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from standardwebhooks import Webhook

from nigredo.clock import utc_now
from nigredo.control.admin import ControlAdmin
from nigredo.kafka.consumer_groups import commit_offsets
from nigredo.testing import Stack, eventually
from schemas.events import WebhookReplay
from schemas.topics import LEADS, WEBHOOK_REPLAYS
from tests.support.webhook_rig import TAKING, Request, Sink, a_lead, answering, sink


@pytest.fixture(scope="module")
def mine(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sink]:
    with sink(stack, tmp_path_factory.mktemp("sink"), more="in_flight_max = 1") as found:
        found.start()
        yield found


@contextmanager
def standing(
    stack: Stack, kind: str, name: str, value: Mapping[str, str], *, for_s: float = 120
) -> Iterator[ControlAdmin]:
    """Let an entry of the control topic stand for a while."""
    changes = ControlAdmin(stack.settings(), "test")
    changes.put(kind, name, value, expires_at=utc_now() + timedelta(seconds=for_s))
    try:
        yield changes
    finally:
        changes.remove(kind, name)


def test_a_pause_keeps_the_place_over_a_restart_and_drains_in_order(stack: Stack, mine: Sink) -> None:
    with standing(stack, "setting", "WEBHOOK_ENABLED", {"value": "false"}):
        eventually(lambda: mine.health().get("paused"), within_s=60, what="the pause")
        before = mine.committed()
        leads = mine.leads(20, partition=2)
        mine.stop()
        mine.start()
        eventually(lambda: mine.health().get("paused"), within_s=60, what="the pause, still")
        leads += mine.leads(20, partition=2)

        assert mine.members() == 1
        assert mine.committed() == before
        assert not set(leads) & set(mine.receiver.ids())

    eventually(lambda: set(leads) <= set(mine.receiver.ids()), within_s=60, what="the deliveries")
    assert [lead_id for lead_id in mine.receiver.ids() if lead_id in leads] == leads


def test_the_command_pauses_and_resumes_and_the_audit_says_so(stack: Stack, mine: Sink) -> None:
    paused = stack.nigredo("webhook", "pause", "--for", "5m")
    try:
        assert (paused.code, paused.err) == (0, "")
        eventually(lambda: mine.health().get("paused"), within_s=60, what="the pause")
    finally:
        resumed = stack.nigredo("webhook", "resume")
    assert resumed.code == 0
    eventually(lambda: mine.health().get("paused") is False, within_s=60, what="the end of the pause")
    ControlAdmin(stack.settings(), "test").remove("setting", "WEBHOOK_ENABLED")
    actions = [entry for message in mine.records("nigredo.audit") if (entry := message.key()) is not None]
    assert b"setting:WEBHOOK_ENABLED" in actions


def test_the_timeout_changes_while_it_runs(stack: Stack, mine: Sink) -> None:
    async def hang(_: Request, __: asyncio.StreamWriter) -> None:
        await asyncio.sleep(10)

    mine.receiver.behaviour = hang
    try:
        with standing(stack, "setting", "WEBHOOK_TIMEOUT_SECONDS", {"value": "0.3"}):
            (lead_id,) = mine.leads(1)
            eventually(
                lambda: any("0.3 s" in (attempt.error_message or "") for attempt in mine.attempts(lead_id)),
                within_s=60,
                every_s=0.2,
                what="an attempt with the new deadline",
            )
    finally:
        mine.receiver.behaviour = TAKING
    eventually(lambda: mine.attempts(lead_id)[-1].outcome == "delivered", within_s=60, every_s=0.2, what="delivered")


def test_a_replay_is_sent_again_with_the_same_id_and_body_and_settled_where_it_was_found(mine: Sink) -> None:
    lead = a_lead()
    mine.write(lead, partition=3)
    lead_id = str(lead.id)
    eventually(lambda: mine.attempts(lead_id), within_s=60, every_s=0.2, what="the delivery")
    made = mine.attempts(lead_id)[0]
    key = f"{lead_id}:{mine.name}".encode()
    foreign = WebhookReplay(lead.id, "another", "test", utc_now(), 3, made.lead_offset)
    asked = WebhookReplay(lead.id, mine.name, "test", utc_now(), 3, made.lead_offset)

    mine.publish(WEBHOOK_REPLAYS, {f"{lead_id}:another".encode(): foreign, key: asked}, partition=3)

    eventually(lambda: (key, 3) not in mine.standing(WEBHOOK_REPLAYS), within_s=60, every_s=0.2, what="the tombstone")
    again = mine.attempts(lead_id)
    assert [(a.attempt, a.outcome, a.replay) for a in again] == [(1, "delivered", False), (1, "delivered", True)]
    first, second = mine.receiver.of(lead_id)
    assert (first.body, first.lead_id) == (second.body, second.lead_id)
    assert (f"{lead_id}:another".encode(), 3) in mine.standing(WEBHOOK_REPLAYS)
    mine.publish(WEBHOOK_REPLAYS, {f"{lead_id}:another".encode(): None}, partition=3)
    eventually(
        lambda: mine.committed(WEBHOOK_REPLAYS) == mine.ends(WEBHOOK_REPLAYS), within_s=60, every_s=0.2, what="offsets"
    )
    rows = eventually(
        lambda: mine.stack.rows(
            "SELECT is_replay, answer_excerpt FROM nigredo.webhook_logs WHERE endpoint = %s AND lead_id = %s"
            " AND is_replay",
            mine.name,
            lead_id,
        ),
        within_s=60,
        what="the row",
    )
    assert rows == [(True, None)]


def test_a_replay_that_fails_is_tried_again(mine: Sink) -> None:
    lead = a_lead()
    lead_id, key = str(lead.id), f"{lead.id}:{mine.name}".encode()
    mine.write(lead, partition=1)
    eventually(lambda: mine.attempts(lead_id), within_s=60, every_s=0.2, what="the delivery")
    offset = mine.attempts(lead_id)[0].lead_offset
    mine.receiver.behaviour = answering(500)
    try:
        asked = WebhookReplay(lead.id, mine.name, "test", utc_now(), 1, offset)
        mine.publish(WEBHOOK_REPLAYS, {key: asked}, partition=1)
        eventually(lambda: len(mine.receiver.of(lead_id)) >= 3, within_s=60, what="two attempts of the replay")
        assert (key, 1) in mine.standing(WEBHOOK_REPLAYS)
    finally:
        mine.receiver.behaviour = TAKING
    eventually(lambda: (key, 1) not in mine.standing(WEBHOOK_REPLAYS), within_s=60, every_s=0.2, what="the tombstone")
    last = mine.attempts(lead_id)[-1]
    assert (last.outcome, last.replay) == ("delivered", True)


def test_a_replay_of_somebody_who_was_erased_is_settled_and_not_sent(mine: Sink) -> None:
    """The reference points at where nothing is any more, or at another lead."""
    other = mine.leads(1, partition=0)[0]
    eventually(lambda: mine.attempts(other), within_s=60, every_s=0.2, what="the delivery")
    offset = mine.attempts(other)[0].lead_offset
    erased = a_lead().id
    key = f"{erased}:{mine.name}".encode()

    mine.publish(WEBHOOK_REPLAYS, {key: WebhookReplay(erased, mine.name, "test", utc_now(), 0, offset)}, partition=0)

    eventually(lambda: key in [m.key() for m in mine.records(WEBHOOK_REPLAYS) if m.value() is None], within_s=60,
               every_s=0.2, what="the tombstone")  # fmt: skip
    assert len(mine.receiver.of(other)) == 1
    assert mine.receiver.of(str(erased)) == []


def test_the_group_is_left_while_its_offsets_are_set_and_everything_from_there_on_is_sent(
    stack: Stack, mine: Sink
) -> None:
    leads = mine.leads(10, partition=1)
    eventually(lambda: set(leads) <= set(mine.receiver.ids()), within_s=60, what="the deliveries")
    first = min(mine.attempts(leads[0])[0].lead_offset, mine.attempts(leads[-1])[0].lead_offset)
    with standing(stack, "leave", mine.group, {}):
        eventually(
            lambda: mine.health().get("waiting_for") == "left the group: offsets are being set",
            within_s=60,
            what="the group is left",
        )
        eventually(lambda: mine.members() == 0, within_s=60, what="a group without members")
        commit_offsets(stack.settings(), mine.group, LEADS, {1: first})

    again = eventually(
        lambda: all(len(mine.receiver.of(lead_id)) == 2 for lead_id in leads), within_s=60, what="all of them again"
    )
    assert again
    assert mine.health().get("waiting_for", "") is None


@pytest.mark.thorough
def test_it_comes_back_by_itself_when_the_time_to_stay_away_is_over(stack: Stack, mine: Sink) -> None:
    with standing(stack, "leave", mine.group, {}, for_s=20):
        eventually(lambda: mine.health().get("waiting_for"), within_s=60, what="the group is left")
        eventually(lambda: mine.health().get("waiting_for") is None, within_s=60, what="it is back")


def test_a_new_secret_signs_beside_the_old_one_without_a_restart(mine: Sink) -> None:
    file = mine.endpoint.secret_file
    old = file.read_text().strip()
    environment = {"WEBHOOK_ENDPOINTS_FILE": str(mine.settings.webhook_endpoints_file)}

    command = mine.stack.nigredo("webhook", "rotate-secret", "--endpoint", mine.name, environment=environment)

    assert command.code == 0, command.err
    new = file.read_text().splitlines()[0]
    assert new not in command.out + command.err
    assert file.stat().st_mode & 0o777 == 0o600

    def signed_with_both() -> Request | None:
        (lead_id,) = mine.leads(1)
        eventually(lambda: mine.receiver.of(lead_id), within_s=60, what="a delivery")
        found = mine.receiver.of(lead_id)[0]
        return found if len(found.headers["webhook-signature"].split()) == 2 else None

    request = eventually(signed_with_both, within_s=60, every_s=0.3, what="two signatures")
    for secret in (old, new):
        Webhook(secret).verify(request.body, dict(request.headers))
    assert new not in mine.log()
    assert old not in mine.log()


def test_a_second_rotation_asks_before_it_ends_a_secret(mine: Sink) -> None:
    before = mine.endpoint.secret_file.read_text()
    environment = {"WEBHOOK_ENDPOINTS_FILE": str(mine.settings.webhook_endpoints_file)}

    command = mine.stack.nigredo("webhook", "rotate-secret", "--endpoint", mine.name, environment=environment)

    assert command.code != 0
    assert mine.endpoint.secret_file.read_text() == before


def test_one_dead_endpoint_changes_nothing_for_the_others(stack: Stack, mine: Sink) -> None:
    mine.receiver.refuse()
    try:
        leads = mine.leads(30)
        eventually(
            lambda: set(leads) <= {hook["headers"]["webhook-id"] for hook in stack.received()},
            within_s=60,
            what="the other endpoint has them",
        )
        assert not set(leads) & set(mine.receiver.ids())
    finally:
        mine.receiver.listen()
    eventually(lambda: set(leads) <= set(mine.receiver.ids()), within_s=90, what="the deliveries")


def test_an_address_that_is_not_public_gets_nothing_and_costs_no_lead(
    stack: Stack, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with sink(stack, tmp_path_factory.mktemp("private"), WEBHOOK_ALLOWED_NETWORKS="203.0.113.0/24") as mine:
        mine.start()
        (lead_id,) = mine.leads(1)

        eventually(lambda: mine.attempts(lead_id), within_s=60, every_s=0.2, what="the attempt")

        eventually(lambda: mine.health().get("breaker") == "open", within_s=60, what="an open breaker")
        attempt = mine.attempts(lead_id)[0]
        assert attempt.outcome == "retry"
        assert "WEBHOOK_ALLOWED_NETWORKS" in (attempt.error_message or "")
        assert mine.receiver.requests == []
        mine.stop()
        mine.start(WEBHOOK_ALLOWED_NETWORKS="127.0.0.0/8")
        eventually(lambda: mine.receiver.of(lead_id), within_s=60, what="the delivery")


def test_a_position_past_the_end_stops_its_partition_alone_and_names_the_way_back(
    stack: Stack, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with sink(stack, tmp_path_factory.mktemp("hole")) as mine:
        mine.start()
        mine.stop()
        eventually(lambda: mine.members() == 0, within_s=60, what="a group without members")
        beyond = mine.ends()[2] + 1_000_000
        commit_offsets(stack.settings(), mine.group, LEADS, {2: beyond})

        mine.spawn()
        stopped = eventually(lambda: mine.health().get("partitions_stopped"), within_s=60, what="the stopped partition")
        held, delivered = mine.leads(1, partition=2), mine.leads(1, partition=1)
        eventually(lambda: set(delivered) <= set(mine.receiver.ids()), within_s=60, what="a lead of another partition")

        assert len(stopped) == 1
        assert f"offset {beyond} of {LEADS} partition 2" in stopped[0]
        assert "nigredo recover" in stopped[0]
        assert not set(held) & set(mine.receiver.ids())


def test_an_endpoint_begins_with_what_was_there_when_asked_to(
    stack: Stack, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with sink(stack, tmp_path_factory.mktemp("begin"), start="beginning") as mine:
        earlier = mine.leads(3)
        mine.start()

        eventually(lambda: set(earlier) <= set(mine.receiver.ids()), within_s=60, what="the earlier leads")


def test_a_wrong_endpoints_file_is_told_in_one_line_before_anything_starts(stack: Stack, tmp_path: Path) -> None:
    file = tmp_path / "endpoints.toml"
    file.write_text('[endpoints.crm]\nurl = "ftp://x"\n')

    command = stack.nigredo(
        "webhook", "rotate-secret", "--endpoint", "crm", environment={"WEBHOOK_ENDPOINTS_FILE": str(file)}
    )

    assert command.code != 0
    assert command.err.count("\n") == 1
    assert "url must be an http:// or https:// URL" in command.err
    assert "needs secret_file, start" in command.err
