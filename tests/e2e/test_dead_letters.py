"""Records that cannot be used: few are parked and have a way back, and many stop what parks them."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any
from uuid import uuid4

from confluent_kafka import Producer

from nigredo.testing import Stack, any_client, eventually
from schemas.topics import SUBMISSIONS
from tests.e2e.test_limit import VERDICTS, publish, submission

SOURCE = f"test-{uuid4()}"
INDEX = f"CREATE UNIQUE INDEX test_one_lead ON nigredo.leads ((1)) WHERE source = '{SOURCE}'"
STORED = "SELECT count(*) FROM nigredo.leads WHERE id = ANY(%s::uuid[])"
LEADS_POSTED = 60
PARKED_MAX = 20


def parked(stack: Stack) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(stack.nigredo("dead-letters", "list", "--json").out)
    return found


def persister_waits_for(stack: Stack) -> str:
    return str(stack.status()["parts"]["persister"]["waiting_for"])


def test_an_index_that_refuses_every_lead_stops_the_persister_and_costs_none(stack: Stack) -> None:
    with stack.database() as database:
        database.execute(INDEX.encode())
        try:
            ids = [stack.post(source=SOURCE).json()["id"] for _ in range(LEADS_POSTED)]
            eventually(
                lambda: "nigredo.leads is stopped" in persister_waits_for(stack), within_s=90, every_s=0.5,
                what="a persister that says that it stopped",
            )  # fmt: skip
            assert len(parked(stack)) == PARKED_MAX
            assert stack.nigredo("status").code == 1
            stack.kill("persister")
            eventually(
                lambda: "nigredo.leads is stopped" in persister_waits_for(stack), within_s=90, every_s=0.5,
                what="the same after a restart",
            )  # fmt: skip
            assert len(parked(stack)) == PARKED_MAX
        finally:
            database.execute(b"DROP INDEX nigredo.test_one_lead")

    # Some of those parked are stored too: their batch was not finished, and came once more.
    eventually(
        lambda: stack.rows(STORED, ids)[0][0] >= LEADS_POSTED - PARKED_MAX
        and stack.status()["parts"]["persister"]["ready"],
        within_s=90, every_s=0.5, what="the leads that were not parked",
    )  # fmt: skip
    assert f"{PARKED_MAX} records of nigredo.leads are parked (refused_by_database)" in stack.nigredo("status").out
    assert stack.nigredo("dead-letters", "retry", "--all", "--yes").code == 0
    assert stack.rows(STORED, ids) == [(LEADS_POSTED,)]
    assert parked(stack) == []
    eventually(lambda: stack.nigredo("status").code == 0, within_s=60, every_s=0.5, what="a stack that is well again")
    counted = Counter(lead["headers"]["webhook-id"] for lead in stack.received())
    assert {counted[lead_id] for lead_id in ids} == {1}


def test_one_record_that_cannot_be_read_is_parked_shown_and_discarded_and_the_others_go_on(stack: Stack) -> None:
    event = submission(any_client())
    producer = Producer(stack.producer_config(delivery_timeout_s=10))
    producer.produce(SUBMISSIONS, key=event.client_network.encode(), value=b"secret, no event")
    assert producer.flush(15) == 0
    publish(stack, [event])
    eventually(lambda: stack.rows(VERDICTS, event.ip_address), within_s=60, what="the good record's verdict")

    (letter,) = eventually(lambda: parked(stack), within_s=60, every_s=0.5, what="the dead letter")
    assert (letter["topic"], letter["reason"], letter["value_bytes"]) == (SUBMISSIONS, "undecodable", 16)
    shown = stack.nigredo("dead-letters", "show", letter["id"])
    assert shown.code == 0
    assert event.client_network not in shown.out
    assert b"secret".hex() in stack.nigredo("dead-letters", "show", letter["id"], "--payload").out
    retried = stack.nigredo("dead-letters", "retry", letter["id"], "--yes")
    assert retried.code == 1
    assert "cannot be read yet" in retried.out
    assert stack.nigredo("dead-letters", "discard", "--all", "--topic", "nigredo.leads", "--yes").code == 0
    assert len(parked(stack)) == 1
    assert stack.nigredo("dead-letters", "discard", letter["id"]).code != 0  # Nobody is there to be asked.
    assert stack.nigredo("dead-letters", "discard", letter["id"], "--dry-run").code == 0
    assert len(parked(stack)) == 1
    assert stack.nigredo("dead-letters", "discard", letter["id"], "--yes").code == 0
    assert parked(stack) == []
