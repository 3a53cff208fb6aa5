"""`nigredo webhook status`, `test`, `failures`, `undelivered`: how delivery stands, from outside."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

import click

from nigredo.cli.control import Duration
from nigredo.cli.output import Context, with_context
from nigredo.cli.replay import endpoint_option
from nigredo.cli.webhook import webhook
from nigredo.replay import FIRST_ENDPOINT

if TYPE_CHECKING:
    from nigredo.settings import Settings

PART = "webhook"


@webhook.command()
@endpoint_option
@with_context
def status(context: Context, endpoint: str) -> None:
    """Show how delivery to a receiver goes. The exit code is 0 only when nothing needs a person.

    Needs one: a pause, an open breaker, a sender that is not ready, more than a tenth of the attempts of the last ten
    minutes failed, a lead that waits for more than ten minutes. Dead leads are shown and do not count.
    """
    from nigredo.clock import utc_now
    from nigredo.endpoint_health import look
    from sinks.webhook.endpoint import named

    settings, now = context.settings(_part(endpoint), role="nigredo_app"), utc_now()
    enabled = named(settings, endpoint).enabled and _current(settings, now).webhook_enabled
    found = look(settings, endpoint, now, enabled=enabled, listener=_listener(context, settings, endpoint))
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
    }
    lines = [
        f"{endpoint}: {'; '.join(problems) or 'well'}",
        f"enabled             {'yes' if found.enabled else 'no: paused'}",
        f"breaker             {found.sender.breaker or 'not known: the sender did not say'}",
        f"lag                 {found.lag}",
        "oldest undelivered  " + (f"{found.oldest.lead_id}, {age_s} s" if found.oldest else "none"),
        f"failed in 10 min    {found.failed} of {found.attempts} attempts ({found.failed_share:.0%})",
        f"wait for a retry    {found.waiting}",
        f"wait for a replay   {found.replays}",
        f"dead                {found.dead}",
    ]
    context.result(document, "\n".join(lines))
    if problems:
        raise click.exceptions.Exit(1)


def _part(endpoint: str) -> str:
    return "webhook-sender" if endpoint == FIRST_ENDPOINT else f"webhook-sender-{endpoint}"


def _listener(context: Context, settings: Settings, endpoint: str) -> str | None:
    """Return where the sender tells of itself, when that is known here."""
    from nigredo.stack.embedded import sender_ports
    from sinks.webhook.endpoint import examine_endpoints

    home = context.stack()
    port = sender_ports(home, examine_endpoints(settings)[0])[endpoint] if home.exists else settings.health_port
    host = "127.0.0.1" if settings.health_host in ("0.0.0.0", "::") else settings.health_host  # noqa: S104 - read, not bound
    return f"http://{host}:{port}" if port else None


def _current(settings: Settings, now: datetime) -> Settings:
    """Return the settings as they hold now, live changes included."""
    from nigredo.changes import Changes
    from nigredo.control import control_of

    entries = (stands.entry for stands in Changes(settings, PART).standing().values())
    return control_of(settings, [e for e in entries if e.expires_at is None or now < e.expires_at]).settings


@webhook.command()
@endpoint_option
@click.option("--empty-lead", is_flag=True, help="With no lead in it, as the operations runbook asks for too")
@with_context
def test(context: Context, endpoint: str, empty_lead: bool) -> None:
    """Send a test request to a receiver, by the code of real deliveries, and show its answer.

    It is marked as a probe (X-Nigredo-Probe), is no lead, and leaves no trace in any number.
    """
    from nigredo.clock import utc_now
    from sinks.webhook.endpoint import named
    from sinks.webhook.probe import probe

    settings = context.settings(_part(endpoint), role="nigredo_app")
    receiver = named(settings, endpoint)
    attempt = asyncio.run(probe(_current(settings, utc_now()), receiver, empty_lead=empty_lead))
    taken = attempt.outcome == "delivered"
    document = {
        "endpoint": endpoint,
        "taken": taken,
        "status_code": attempt.status_code,
        "duration_ms": attempt.duration_ms,
        "error_message": attempt.error_message,
    }
    answer = f"answered {attempt.status_code}" if attempt.status_code else f"did not answer ({attempt.error_message})"
    context.result(document, f"{endpoint} {answer} after {attempt.duration_ms} ms")
    if not taken:
        raise click.exceptions.Exit(1)


@webhook.command()
@click.option("-n", "limit", type=click.IntRange(1, 10_000), default=20, show_default=True, help="At most so many")
@click.option("--last", type=Duration(), default="365d", help="Only of the last 1h, 30m, …  [default: all there are]")
@click.option("--endpoint", default=None, help="Only at this receiver")
@with_context
def failures(context: Context, limit: int, last: timedelta, endpoint: str | None) -> None:
    """Show failed attempts, newest first, as the operations runbook asks for them."""
    from nigredo.clock import utc_now
    from nigredo.deliveries import failures as found

    rows = found(context.settings(PART, role="nigredo_app"), endpoint, utc_now() - last, limit)
    lines = [
        f"{row.sent_at:%Y-%m-%d %H:%M:%S} UTC  {row.lead_id}  {row.endpoint}  attempt {row.attempt}  "
        f"{row.status_code or '-'}  {row.error_message or ''}".rstrip()
        for row in rows
    ]
    context.result([_plain(asdict(row)) for row in rows], "\n".join(lines) or "no attempt failed")


@webhook.command()
@click.option("-n", "limit", type=click.IntRange(1, 10_000), default=20, show_default=True, help="At most so many")
@endpoint_option
@with_context
def undelivered(context: Context, limit: int, endpoint: str) -> None:
    """Show leads that a receiver does not have, oldest first, and what comes next for each."""
    from nigredo.clock import utc_now
    from nigredo.deliveries import ATTEMPTS_KEPT
    from nigredo.deliveries import undelivered as found
    from nigredo.redelivery import Redelivery

    settings = context.settings(PART, role="nigredo_app")
    # What is to come is asked first: a lead that is delivered meanwhile is then not in the rows any more.
    prospects = Redelivery(settings, endpoint, PART).prospects()
    rows = found(settings, endpoint, utc_now() - ATTEMPTS_KEPT, limit)
    document, lines = [], []
    for row in rows:
        comes = prospects.of(row.lead_id, row.lead_partition, row.lead_offset)
        document.append(_plain(asdict(row)) | {"state": comes})
        lines.append(
            f"{row.taken_at:%Y-%m-%d %H:%M:%S} UTC  {row.lead_id}  {comes}  attempts {row.attempts or 0}"
            + ("" if row.last_sent_at is None else f", the last at {row.last_sent_at:%Y-%m-%d %H:%M:%S} UTC")
            + f"  {row.status_code or '-'}  {row.error_message or ''}".rstrip()
        )
    context.result(document, "\n".join(lines) or f"{endpoint} has every lead")


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row as JSON can hold it."""
    return {
        name: value.isoformat() if isinstance(value, datetime) else str(value) if isinstance(value, UUID) else value
        for name, value in row.items()
    }


COMMANDS = ()
