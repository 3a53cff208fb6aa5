"""`nigredo webhook`: deliveries to the receivers."""

from __future__ import annotations

import getpass
from datetime import timedelta

import click

from nigredo.cli.control import PART, lasts
from nigredo.cli.output import Context, with_context
from nigredo.cli.webhook_secret import rotate_secret


@click.group()
def webhook() -> None:
    """Deliveries to the receivers."""


webhook.add_command(rotate_secret)


@webhook.command()
@lasts
@with_context
def pause(context: Context, lasts: timedelta | None) -> None:
    """Send nothing to any receiver until `nigredo webhook resume`; leads are taken and stored meanwhile."""
    _switch(context, on=False, lasts=lasts)


@webhook.command()
@with_context
def resume(context: Context) -> None:
    """Send again, what waited first."""
    _switch(context, on=True, lasts=None)


def _switch(context: Context, *, on: bool, lasts: timedelta | None) -> None:
    from nigredo.changes import Changes
    from nigredo.clock import utc_now
    from nigredo.control import SETTING, setting_entry

    until = None if lasts is None else utc_now() + lasts
    changes = Changes(context.settings(PART, role="nigredo_app"), getpass.getuser())
    changes.put(SETTING, "WEBHOOK_ENABLED", setting_entry("WEBHOOK_ENABLED", str(on).lower()), expires_at=until)
    ends = "" if until is None else f" until {until:%Y-%m-%d %H:%M:%S} UTC"
    text = "webhooks are sent" if on else f"no webhooks are sent{ends}; leads wait in the log"
    context.result({"webhook_enabled": on, "until": until and until.isoformat()}, text)


COMMANDS = (webhook,)
