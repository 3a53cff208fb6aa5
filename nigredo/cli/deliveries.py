"""`nigredo webhook status`, `test`, `failures`, `undelivered`: how delivery stands, from outside."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import click

from nigredo.cli.control import Duration
from nigredo.cli.output import Context, with_context
from nigredo.cli.replay import endpoint_option
from nigredo.cli.webhook import webhook

PART = "webhook"


@webhook.command()
@click.option("-n", "limit", type=click.IntRange(1, 10_000), default=20, show_default=True, help="At most so many")
@click.option("--last", type=Duration(), default="365d", help="Only of the last 1h, 30m, …  [default: all there are]")
@with_context
def failures(context: Context, limit: int, last: timedelta) -> None:
    """Show failed attempts, newest first, as the operations runbook asks for them."""
    from nigredo.clock import utc_now
    from nigredo.deliveries import failures as found

    rows = found(context.settings(PART, role="nigredo_app"), utc_now() - last, limit)
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
            f"{row.taken_at:%Y-%m-%d %H:%M:%S} UTC  {row.lead_id}  {comes}  attempts {row.attempts or 0}  "
            f"{row.status_code or '-'}  {row.error_message or ''}".rstrip()
        )
    context.result(document, "\n".join(lines) or f"{endpoint} has every lead")


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row as JSON can hold it."""
    return {
        name: value.isoformat() if isinstance(value, datetime) else str(value) if isinstance(value, UUID) else value
        for name, value in row.items()
    }


COMMANDS = ()
