"""`nigredo webhook status`, `test`, `failures`, `undelivered`: state of the delivery to a receiver."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import click

from nigredo.cli.control import Duration
from nigredo.cli.output import Context, complain, with_context
from nigredo.cli.replay import endpoint_option, require_endpoint
from nigredo.cli.webhook import listener_of, webhook
from nigredo.clock import utc_now
from nigredo.control.admin import ControlAdmin
from nigredo.control.state import ENDPOINT, control_of
from nigredo.endpoints.endpoint import named
from nigredo.endpoints.keys import sender_part
from nigredo.endpoints.start import first_offsets
from nigredo.errors import DependencyDown
from nigredo.operations import delivery_queries
from nigredo.operations.delivery_queries import ATTEMPTS_KEPT, Begun
from nigredo.operations.endpoint_status import read_status
from nigredo.operations.recovery.beyond import behind, beyond, gaps
from nigredo.operations.replay import ReplayService
from nigredo.plural import counted
from nigredo.settings import Settings
from schemas.topics import DELIVERIES, LEADS
from sinks.webhook.transport.probe import probe

PART = "webhook"


@webhook.command()
@endpoint_option
@with_context
def status(context: Context, endpoint: str) -> None:
    """Show the state of delivery to a receiver. The exit code is 0 only when there is no problem.

    Problems: a pause, an open breaker, a sender that is not ready, more than a tenth of the attempts of the last ten
    minutes failed, a lead that waits for more than ten minutes, submissions that are not judged because the log is not
    the one that the limiter read. Dead leads are shown but are no problem.
    """
    settings, now = context.settings(sender_part(endpoint), role="nigredo_app"), utc_now()
    enabled = named(settings, endpoint).enabled and _current_settings(context, settings).webhook_enabled
    found = read_status(settings, endpoint, now, enabled=enabled, listener=listener_of(context, settings, endpoint))
    if found.sender.paused is None:
        context.warn_of_own_settings()
    problems = found.problems(now)
    age_s = None if found.oldest is None else round((now - found.oldest.since).total_seconds())
    document = {
        "endpoint": endpoint,
        "well": not problems,
        "problems": problems,
        "enabled": found.enabled,
        "breaker": found.sender.breaker,
        "sender_ready": found.sender.ready,
        "lag": found.lag,
        "oldest_undelivered": found.oldest and {"lead_id": str(found.oldest.lead_id), "age_s": age_s},
        "attempts_10m": found.attempts,
        "failed_10m": found.failed,
        "failed_share_10m": round(found.failed_share, 4),
        "waiting": found.waiting,
        "replays": found.replays,
        "dead": found.dead,
        "parked": found.parked,
        "unread_partitions": list(found.unread),
    }
    lines = [
        f"{endpoint}: {'; '.join(problems) or 'well'}",
        f"enabled             {'yes' if found.enabled else 'no: paused'}",
        f"breaker             {found.sender.breaker or 'unknown: the sender did not report it'}",
        f"lag                 {found.lag}",
        "oldest undelivered  " + (f"{found.oldest.lead_id}, {age_s} s" if found.oldest else "none"),
        f"failed in 10 min    {found.failed} of {counted(found.attempts, 'attempt')} ({found.failed_share:.0%})",
        f"wait for a retry    {found.waiting}",
        f"wait for a replay   {found.replays}",
        f"dead                {found.dead}",
        f"parked              {found.parked}",
    ]
    context.result(document, lines)
    if problems:
        raise click.exceptions.Exit(1)


def _current_settings(context: Context, settings: Settings) -> Settings:
    """Return the current settings, with the changes in the control topic."""
    return control_of(settings, ControlAdmin(settings, context.actor).held()).settings


@webhook.command()
@endpoint_option
@click.option("--empty-lead", is_flag=True, help="With no lead in it, as the operations runbook asks for too")
@with_context
def test(context: Context, endpoint: str, empty_lead: bool) -> None:
    """Send a test request to a receiver, with the code of real deliveries, and show its answer.

    The request is marked as a probe (X-Nigredo-Probe), is no lead, and is not counted anywhere.
    """
    settings = context.settings(sender_part(endpoint), role="nigredo_app")
    receiver = named(settings, endpoint)
    context.warn_of_own_settings()
    attempt = asyncio.run(probe(_current_settings(context, settings), receiver, empty_lead=empty_lead))
    delivered = attempt.outcome == "delivered"
    document = {
        "endpoint": endpoint,
        "taken": delivered,
        "status_code": attempt.status_code,
        "duration_ms": attempt.duration_ms,
        "error_message": attempt.error_message,
    }
    answer = f"answered {attempt.status_code}" if attempt.status_code else f"did not answer ({attempt.error_message})"
    context.result(document, f"{endpoint} {answer} after {attempt.duration_ms} ms")
    if not delivered:
        raise click.exceptions.Exit(1)


@webhook.command()
@click.option("-n", "limit", type=click.IntRange(1, 10_000), default=20, show_default=True, help="How many at most")
@click.option("--last", type=Duration(), default="365d", help="Only of the last 1h, 30m, …  [default: all there are]")
@click.option("--endpoint", default=None, help="Only at this receiver")
@with_context
def failures(context: Context, limit: int, last: timedelta, endpoint: str | None) -> None:
    """Show failed attempts, newest first, with the query of the operations runbook.

    The exit code is 0 only when the table is up to date with the log.
    """
    if endpoint is not None:
        require_endpoint(context, endpoint)
    settings = context.settings(PART, role="nigredo_app")
    up_to_date = table_is_current(settings, [DELIVERIES])
    rows = delivery_queries.failures(settings, endpoint, utc_now() - last, limit)
    lines = [
        f"{row.sent_at:%Y-%m-%d %H:%M:%S} UTC  {row.lead_id}  {row.endpoint}  attempt {row.attempt}  "
        f"{row.status_code or '-'}  {row.error_message or ''}".rstrip()
        for row in rows
    ]
    context.result(
        [_plain(asdict(row)) for row in rows],
        lines or f"no attempt failed in that time{'' if up_to_date else ', as far as the table goes'}",
    )
    if not up_to_date:
        raise click.exceptions.Exit(1)


def table_is_current(settings: Settings, topics: Collection[str]) -> bool:
    """Return whether the tables are up to date with these topics; else print on stderr how far behind they are."""
    try:
        records = behind(gaps(settings, topics))
    except DependencyDown as error:
        complain(f"not known whether the table is up to date: {error}")
        return False
    if records:
        complain(f"the table is {counted(records, 'record')} behind the log: the persister lags, see `nigredo status`")
    return not records


@webhook.command()
@click.option("-n", "limit", type=click.IntRange(1, 10_000), default=20, show_default=True, help="How many at most")
@endpoint_option
@with_context
def undelivered(context: Context, limit: int, endpoint: str) -> None:
    """Show undelivered leads of a receiver, oldest first, each with its next step.

    Read from the tables, and from the log where the tables are behind. The exit code is 0 only when there is none.
    """
    settings = context.settings(PART, role="nigredo_app")
    # The prospects first, so that a lead delivered meanwhile is no longer in the rows.
    replays = ReplayService(settings, endpoint, PART)
    prospects = replays.prospects()
    in_log = beyond(settings, replays.topics, endpoint, gaps(settings, [LEADS, DELIVERIES]))
    rows = delivery_queries.undelivered(
        settings, endpoint, utc_now() - ATTEMPTS_KEPT, limit, in_log, _begun(context, settings, endpoint)
    )
    document, lines = [], []
    for row in rows:
        state = prospects.of(row.lead_id, row.lead_partition, row.lead_offset)
        document.append(_plain(asdict(row)) | {"state": state})
        lines.append(
            f"{row.taken_at:%Y-%m-%d %H:%M:%S} UTC  {row.lead_id}  {state}  attempts {row.attempts or 0}"
            + ("" if row.last_sent_at is None else f", the last at {row.last_sent_at:%Y-%m-%d %H:%M:%S} UTC")
            + f"  {row.status_code or '-'}  {row.error_message or ''}".rstrip()
        )
    context.result(document, lines or f"{endpoint} has every lead of the last {ATTEMPTS_KEPT.days} days")
    if rows:
        raise click.exceptions.Exit(1)


def _begun(context: Context, settings: Settings, endpoint: str) -> Begun | None:
    """Return the first offsets of an endpoint with `start = "now"`, from the control topic; None for any other."""

    entries = ControlAdmin(settings, context.actor).held(ENDPOINT)
    entry = next((entry for entry in entries if entry.name == endpoint), None)
    found = None if entry is None else first_offsets(entry)
    return None if found is None else Begun(*found)


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row with its times and ids as text, for JSON."""
    return {
        name: value.isoformat() if isinstance(value, datetime) else str(value) if isinstance(value, UUID) else value
        for name, value in row.items()
    }
