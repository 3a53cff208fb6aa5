"""`nigredo webhook rotate-secret`: a new signing secret, with an overlap in which the old one still signs."""

from __future__ import annotations

from datetime import timedelta

import click

from nigredo.cli.control import Duration
from nigredo.cli.output import Context, with_context
from nigredo.clock import utc_now
from nigredo.components import WEBHOOK_SENDER
from nigredo.endpoints.endpoint import named
from nigredo.endpoints.secrets import active, read_secrets, rotated, write_secrets


@click.command(name="rotate-secret")
@click.option("--endpoint", default="fibonacci", show_default=True, help="Whose secret")
@click.option("--overlap", type=Duration(), default="24h", show_default=True, help="How long the old one still signs")
@click.option("--yes", is_flag=True, help="Do not ask")
@with_context
def rotate_secret(context: Context, endpoint: str, overlap: timedelta, yes: bool) -> None:
    """Put a new secret into an endpoint's secret file; the running sender signs with both within a second.

    The secret is not printed: it is the first line of the file.
    """
    file, now = named(context.settings(WEBHOOK_SENDER, role="nigredo_app"), endpoint).secret_file, utc_now()
    found = read_secrets(file)
    if len(active(found, now)) > 1:
        context.confirm("Two secrets are active: the older ends at once. Go on?", yes=yes)
    until = now + overlap
    write_secrets(file, rotated(found, until))
    context.result(
        {"endpoint": endpoint, "file": str(file), "old_until": until.isoformat()},
        f"the new secret is the first line of {file}; the old one still signs until {until:%Y-%m-%d %H:%M:%S} UTC",
        changed=True,
    )
