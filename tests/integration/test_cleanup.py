"""The hourly clean-up: rows live as long as their topics, and nobody is freed by it."""

from __future__ import annotations

import asyncio
from uuid import uuid4

from nigredo.postgres.pool import make_pool
from nigredo.testing import Stack, any_ipv4_client, eventually
from processors.persistence.maintenance.row_retention import BATCH_MAX, RowRetention
from tests.e2e.test_freeing import A_ROW, psql, resets

SUBMISSION = b"""
INSERT INTO nigredo.form_submissions
    (id, lead_id, ip_address, verdict, submitted_at, submission_partition, submission_offset)
SELECT id, id, %s, %s, now() - %s::interval, 0, 0 FROM (SELECT gen_random_uuid() AS id FROM generate_series(1, %s)) AS x
"""
ATTEMPT = b"""
INSERT INTO nigredo.webhook_logs (id, lead_id, endpoint, webhook_url, attempt, success, sent_at, duration_ms)
VALUES (gen_random_uuid(), %s, 'test', 'http://x', 1, true, now() - %s::interval, 1)
"""


def clean_up(stack: Stack) -> float:
    async def scenario() -> float:
        pool = make_pool(stack.settings(), "test", size_max=1)
        await pool.open()
        try:
            return await RowRetention(pool).run()
        finally:
            await pool.close()

    return asyncio.run(scenario())


def test_windows_older_than_a_day_go_and_nobody_is_freed_by_that(stack: Stack) -> None:
    old, young, asked_for = any_ipv4_client(), any_ipv4_client(), any_ipv4_client()
    with stack.database() as database:
        for network, since in ((old, "now() - interval '25 hours'"), (young, "now() - interval '23 hours'")):
            database.execute(A_ROW.replace(b"%s::timestamptz", since.encode()), [network])
        database.execute(A_ROW, [asked_for, "now"])

    clean_up(stack)

    left = "SELECT ip_address FROM nigredo.rate_limits WHERE ip_address = ANY(%s)"
    assert stack.rows(left, [old, young]) == [(young,)]
    # What is noted is passed on in order: had the old one been noted, it would have come before this one.
    psql(stack, f"DELETE FROM nigredo.rate_limits WHERE ip_address IN ('{asked_for}', '{young}')")
    found = eventually(
        lambda: found if len(found := resets(stack, old, young, asked_for)) >= 2 else None,
        within_s=60,
        every_s=0.3,
        what="the resets that were asked for",
    )
    assert {reset.client_network for reset in found} == {young, asked_for}


def test_old_refusals_and_attempts_go_and_leads_stay(stack: Stack) -> None:
    client, lead = f"test-{uuid4()}", uuid4()
    with stack.database() as database:
        for verdict in ("accepted", "released", "rate_limited", "spam", "duplicate"):
            for age in ("29 days", "31 days"):
                database.execute(SUBMISSION, [client, verdict, age, 2])
        # More than one batch of them.
        database.execute(SUBMISSION, [client, "spam", "40 days", 2 * BATCH_MAX + 1])
        for age in ("364 days", "366 days"):
            database.execute(ATTEMPT, [lead, age])

    again_in_s = clean_up(stack)

    assert 3000 < again_in_s < 4000
    kept = "SELECT verdict, count(*) FROM nigredo.form_submissions WHERE ip_address = %s GROUP BY 1 ORDER BY 1"
    expected = [("accepted", 4), ("duplicate", 2), ("rate_limited", 2), ("released", 4), ("spam", 2)]
    assert stack.rows(kept, client) == expected
    assert stack.rows("SELECT count(*) FROM nigredo.webhook_logs WHERE lead_id = %s", lead) == [(1,)]
    stack.rows("DELETE FROM nigredo.form_submissions WHERE ip_address = %s RETURNING 1", client)
    stack.rows("DELETE FROM nigredo.webhook_logs WHERE lead_id = %s RETURNING 1", lead)
