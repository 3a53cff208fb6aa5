"""`nigredo migrate`: migrations of the database's schema."""

from __future__ import annotations

import click

from nigredo.cli.output import Context, with_context
from nigredo.postgres.migrate import migrate as apply


@click.command()
@with_context
def migrate(context: Context) -> None:
    """Apply the migrations that the database does not have yet; safe to repeat."""
    applied = apply(context.settings("migrate", role="admin"))
    context.result({"applied": applied}, applied or "nothing to apply", changed=True)
