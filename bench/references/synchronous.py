"""Synchronous design that the product replaces, written as well as possible: limit, inserts and webhook in the request.

A pool of ten connections with prepared statements, one transaction a request, and, where `WEBHOOK` names a receiver,
the delivery by a pooled httpx client before the answer. Validation is ingest's own.
"""

from __future__ import annotations

import os
from typing import Any
from uuid import uuid4

import falcon
import falcon.asgi
import httpx
import psycopg_pool
from psycopg.types.json import Jsonb

from ingest.forms.decoding import parse_form
from ingest.forms.validation import Form
from nigredo.networks import client_address, client_network
from nigredo.settings import Settings

POOL = 10
LIMIT_UPSERT = """
INSERT INTO bench.limits AS present (ip_address, submission_count, window_start) VALUES (%s, 1, now())
ON CONFLICT (ip_address) DO UPDATE SET
    submission_count = CASE WHEN present.window_start < now() - interval '1 hour'
                            THEN 1 ELSE present.submission_count + 1 END,
    window_start = CASE WHEN present.window_start < now() - interval '1 hour' THEN now() ELSE present.window_start END
RETURNING submission_count"""
INSERT_LEAD = """
INSERT INTO bench.leads (id, name, email, message, extra, source, form_id, ip_address, user_agent, created_at,
                         lead_partition, lead_offset)
VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, now(), 0, 0)"""
INSERT_SUBMISSION = """
INSERT INTO bench.form_submissions (id, lead_id, ip_address, user_agent, source, form_id, verdict, submitted_at,
                                    submission_partition, submission_offset)
VALUES (%s, %s, %s, %s, %s, %s, 'accepted', now(), 0, 0)"""
SCHEMA = """
CREATE SCHEMA IF NOT EXISTS bench;
CREATE TABLE IF NOT EXISTS bench.leads (LIKE nigredo.leads INCLUDING ALL);
CREATE TABLE IF NOT EXISTS bench.form_submissions (LIKE nigredo.form_submissions INCLUDING ALL);
CREATE TABLE IF NOT EXISTS bench.limits
    (ip_address text PRIMARY KEY, submission_count integer NOT NULL, window_start timestamptz NOT NULL);
GRANT USAGE ON SCHEMA bench TO nigredo_app;
GRANT SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA bench TO nigredo_app"""


class Leads:
    """`POST /api/leads` with all the work before the answer."""

    def __init__(self, settings: Settings, webhook: str | None) -> None:
        self._settings = settings
        self._webhook = webhook
        self.pool = psycopg_pool.AsyncConnectionPool(
            settings.database_url, min_size=POOL, max_size=POOL, open=False, kwargs={"prepare_threshold": 1}
        )
        limits = httpx.Limits(max_connections=100, max_keepalive_connections=100)
        self.client = httpx.AsyncClient(timeout=5.0, limits=limits, trust_env=False)

    async def on_post(self, request: falcon.asgi.Request, response: falcon.asgi.Response) -> None:
        """Judge, store, deliver, answer."""
        form = parse_form(request.content_type, await request.stream.read())
        address = client_address(
            request.remote_addr, request.get_header("X-Forwarded-For"), None, self._settings.trusted_proxies
        )
        lead_id, network = str(uuid4()), client_network(address)
        if not await self._store(lead_id, network, form, request.user_agent):
            raise falcon.HTTPTooManyRequests(retry_after=3600)
        if self._webhook is not None:
            await self._deliver(self._webhook, lead_id, form)
        response.status = falcon.HTTP_202
        response.media = {"id": lead_id, "status": "accepted"}

    async def _store(self, lead_id: str, network: str, form: Form, agent: str | None) -> bool:
        contact = form.contact
        async with self.pool.connection() as connection, connection.transaction():
            cursor = await connection.execute(LIMIT_UPSERT, [network])
            row = await cursor.fetchone()
            if row is None or row[0] > self._settings.rate_limit_per_hour:
                return False
            lead = [lead_id, contact.name, contact.email, contact.message, Jsonb(dict(contact.extra))]
            await connection.execute(INSERT_LEAD, [*lead, form.source, form.form_id, network, agent])
            await connection.execute(INSERT_SUBMISSION, [lead_id, lead_id, network, agent, form.source, form.form_id])
        return True

    async def _deliver(self, url: str, lead_id: str, form: Form) -> None:
        contact = form.contact
        lead = {"id": lead_id, "name": contact.name, "email": contact.email, "message": contact.message}
        await self.client.post(url, json={"event_type": "lead.created", "lead": lead})


class Pool:
    """Opens the route's connection pool at start-up and closes it at shutdown."""

    def __init__(self, leads: Leads) -> None:
        self._leads = leads

    async def process_startup(self, *_: Any) -> None:
        """Open the pool."""
        await self._leads.pool.open(wait=True)

    async def process_shutdown(self, *_: Any) -> None:
        """Close the pool and the HTTP client."""
        await self._leads.pool.close()
        await self._leads.client.aclose()


def create() -> falcon.asgi.App[Any, Any]:
    """Return the application."""
    leads = Leads(Settings.from_environment(os.environ), os.environ.get("WEBHOOK"))
    app = falcon.asgi.App(middleware=[Pool(leads)])
    app.add_route("/api/leads", leads)
    return app
