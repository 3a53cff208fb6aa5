"""Leads as they are read, against the real PostgreSQL."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import uuid4

from ingest.reads.lead_queries import LeadQueries
from nigredo.postgres.pool import make_pool
from nigredo.testing import Stack, eventually

LEAD = """
INSERT INTO nigredo.leads (id, name, email, message, ip_address, created_at, lead_partition, lead_offset)
VALUES (%s, 'Ana', 'ana@example.com', 'Oi', '192.0.2.1', now(), 0, 0)"""
SUBMISSION = """
INSERT INTO nigredo.form_submissions
    (id, lead_id, ip_address, verdict, submitted_at, submission_partition, submission_offset)
VALUES (%s, %s, '192.0.2.1', 'accepted', now(), 0, 0)"""
WAITS = """
SELECT 1 FROM pg_locks JOIN pg_stat_activity USING (pid)
WHERE relation = 'nigredo.leads'::regclass AND NOT granted AND application_name = 'nigredo-reading-dev'"""


def test_a_trail_is_of_one_moment_whatever_is_stored_meanwhile(stack: Stack) -> None:
    lead_id = uuid4()

    async def trail_of() -> Any:
        pool = make_pool(stack.settings(), "reading", size_max=1)
        await pool.open()
        try:
            return await LeadQueries(pool).trail(lead_id)
        finally:
            await pool.close()

    async def scenario() -> tuple[Any, Any]:
        with stack.database() as writer:
            # The trail has looked for a submission, and waits for its lead.
            with writer.transaction():
                writer.execute("LOCK TABLE nigredo.leads IN ACCESS EXCLUSIVE MODE")
                reading = asyncio.create_task(trail_of())
                await asyncio.to_thread(eventually, lambda: stack.rows(WAITS), within_s=4, what="a trail that waits")
                writer.execute(SUBMISSION, (lead_id, lead_id))
                writer.execute(LEAD, (lead_id,))
            return await reading, await trail_of()

    try:
        meanwhile, afterwards = asyncio.run(scenario())
    finally:
        with stack.database() as database:
            for table in ("leads", "form_submissions"):
                database.execute(f"DELETE FROM nigredo.{table} WHERE id = %s".encode(), (lead_id,))

    assert meanwhile is None
    assert afterwards["submission"]["verdict"] == "accepted"
    assert afterwards["lead"] is not None
