"""A group is set back while its members stay away; they come back whatever happens, and lose nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from nigredo.clock import utc_now
from nigredo.control.admin import ControlAdmin
from nigredo.control.state import LEAVE
from nigredo.errors import DependencyDown
from nigredo.kafka.consumer_groups import members
from nigredo.testing import Stack, eventually

STORED = "SELECT count(*) FROM nigredo.leads WHERE id = ANY(%s::uuid[])"
LEADS = 8


def taken_and_stored(stack: Stack) -> list[str]:
    ids = [stack.post().json()["id"] for _ in range(LEADS)]
    eventually(lambda: stack.rows(STORED, ids) == [(LEADS,)], within_s=60, what="the leads' rows")
    return ids


def in_group(stack: Stack, group: str) -> Callable[[int], bool]:
    def are(count: int) -> bool:
        try:
            return members(stack.settings(), group) == count
        except DependencyDown:
            return False

    return are


def document(stack: Stack, *arguments: str) -> Any:
    done = stack.nigredo(*arguments, "--json")
    assert done.code == 0, done.err
    return json.loads(done.out)


def test_lost_rows_come_back_from_the_topics_and_what_people_changed_stays(stack: Stack) -> None:
    begin = datetime.now(UTC) - timedelta(seconds=1)
    ids = taken_and_stored(stack)
    stack.rows("UPDATE nigredo.leads SET status = 'contacted' WHERE id = %s RETURNING 1", ids[0])
    stack.rows("DELETE FROM nigredo.leads WHERE id = ANY(%s::uuid[]) RETURNING 1", ids[1:])
    before = stack.status()["parts"]["persister"]

    planned = document(stack, "rewind", "persister", "--to-datetime", begin.isoformat(), "--dry-run")
    assert stack.rows(STORED, ids) == [(1,)]
    done = document(stack, "rewind", "persister", "--to-datetime", begin.isoformat(), "--yes")

    assert done["done"]
    of_leads = [step for step in planned["partitions"] if step["topic"] == "nigredo.leads"]
    assert sum(step["records"] for step in of_leads) >= LEADS
    eventually(lambda: stack.rows(STORED, ids) == [(LEADS,)], within_s=60, what="the lost rows")
    assert stack.rows("SELECT status FROM nigredo.leads WHERE id = %s", ids[0]) == [("contacted",)]
    later = stack.post().json()["id"]
    eventually(lambda: stack.rows(STORED, [later]) == [(1,)], within_s=60, what="the work going on")
    part = stack.status()["parts"]["persister"]
    assert (part["pid"], part["restarts"]) == (before["pid"], before["restarts"])


@pytest.mark.parametrize("part", ["persister", "webhook-sender"])
def test_members_come_back_by_themselves_when_whoever_sent_them_away_is_gone(stack: Stack, part: str) -> None:
    settings = stack.settings(NIGREDO_ENV="dev")
    group = settings.function(part)
    are = in_group(stack, group)
    eventually(lambda: are(1), within_s=60, what="a member")
    restarts = stack.status()["parts"][part]["restarts"]

    def send_away(for_s: float) -> None:
        ControlAdmin(settings, "test").put(LEAVE, group, {}, expires_at=utc_now() + timedelta(seconds=for_s))

    send_away(120)
    eventually(lambda: are(0), within_s=60, what="a group without members")
    eventually(lambda: stack.status()["parts"][part]["waiting_for"], within_s=60, what="the reason in its health")
    send_away(3)
    eventually(lambda: are(1), within_s=60, what="the member again")
    eventually(lambda: stack.status()["parts"][part]["ready"], within_s=60, what="its readiness")
    assert stack.status()["parts"][part]["restarts"] == restarts
    ControlAdmin(settings, "test").remove(LEAVE, group)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("rate-limiter", "--to-earliest"), "ahead of the log"),
        (("somebody-else", "--to-earliest"), "there is no group"),
        (("persister",), "one of"),
        (("persister", "--to-earliest", "--to-offset", "nigredo.leads:0:0"), "one of"),
        (("persister", "--to-offset", "0:0"), "nigredo.leads:0:0"),
        (("webhook-sender", "--to-offset", "0"), "0:1500"),
        (("webhook-sender", "--to-offset", "0:999999999"), "would skip"),
        (("webhook-sender", "--to-offset", "99:0"), "does not read"),
        (("webhook-sender", "--to-datetime", "yesterday"), "2026-01-31T09:30:00Z"),
        (("webhook-sender-none", "--to-earliest"), "never began"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(stack: Stack, arguments: tuple[str, ...], said: str) -> None:
    done = stack.nigredo("rewind", *arguments, "--yes")

    assert done.code != 0
    assert said in done.err
    assert len(done.err.splitlines()) == 1


def test_nothing_is_set_back_unless_somebody_agrees(stack: Stack) -> None:
    taken_and_stored(stack)

    done = stack.nigredo("rewind", "persister", "--to-earliest", "--accept-gaps")

    assert done.code != 0
    assert "--yes" in done.err
