"""`nigredo recover`: repair of positions, windows and leads after a disaster to the log."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import click

from nigredo.cli.output import Context, with_context
from nigredo.cli.replay import yes_option
from nigredo.endpoints.endpoint import examine_endpoints
from nigredo.endpoints.start import first_offsets
from nigredo.errors import NigredoError
from nigredo.operations.recovery.procedure import Recovery
from nigredo.operations.recovery.survey import Condition
from nigredo.plural import counted

PART = "recover"
IDS_SHOWN = 20


@click.command()
@click.option("--dry-run", is_flag=True, help="Only show the damage and the repair")
@click.option("--ids", is_flag=True, help="List every lead that the log lost, not only the first few")
@yes_option
@with_context
def recover(context: Context, dry_run: bool, ids: bool, yes: bool) -> None:
    """Repair stored positions, windows and leads after the log was lost, truncated, restored or recreated.

    Shows the damage first. The limiter and the affected senders leave their groups meanwhile; forms are accepted all
    the time. The exit code is 0 only when nothing is left to repair.
    """
    recovery = _recovery(context)
    found = recovery.look()
    lines = _described(found, ids=ids)
    if found.well:
        context.result(_document(found, done=False), lines)
        return
    if dry_run:
        context.result(_document(found, done=False), [*lines, "to repair it: nigredo recover"])
        raise SystemExit(1)
    context.tell(*lines)
    context.confirm("Set windows, offsets and leads to the log as it is?", yes=yes)
    after = recovery.repair(context.tell)
    if not after.well:
        raise NigredoError(f"not everything is repaired: {'; '.join(_described(after, ids=False))}")
    context.result(_document(after, done=True), "repaired: every stored position agrees with the log", changed=True)


def _recovery(context: Context) -> Recovery:
    settings = context.settings(PART, role="nigredo_app")
    return Recovery(settings, list(examine_endpoints(settings)[0]), context.actor, first_offsets)


def _document(found: Condition, *, done: bool) -> dict[str, Any]:
    return {
        "well": found.well,
        "done": done,
        "missing_topics": list(found.missing_topics),
        "uneven_topics": {topic: list(partitions) for topic, partitions in found.uneven.items()},
        "restarts": [asdict(restart) for restart in found.restarts],
        "lost_leads": [str(lead_id) for lead_id in found.lost],
        "only_in_database": found.only_stored,
        "gone_leads": [str(lead_id) for lead_id in found.gone],
    }


def _described(found: Condition, *, ids: bool) -> list[str]:
    lines = [f"there is no topic {topic}" for topic in found.missing_topics]
    lines += [f"{topic} has {has} of {counted(needs, 'partition')}" for topic, (has, needs) in found.uneven.items()]
    lines += [f"{restart.reason.partition('; repair')[0]}: goes on at {restart.goes_to}" for restart in found.restarts]
    if found.lost:
        lines.append(
            f"{counted(len(found.lost), 'accepted lead is', 'accepted leads are')} not in the log, "
            "and some endpoint never received them:"
        )
        shown = found.lost if ids else found.lost[:IDS_SHOWN]
        lines += [f"  {lead_id}" for lead_id in shown]
        if more := len(found.lost) - len(shown):
            lines.append(f"  and {more} more; --ids lists them")
    if found.only_stored:
        lines.append(
            f"{counted(found.only_stored, 'lead is', 'leads are')} in PostgreSQL alone, "
            "delivered to every endpoint: no repair is needed"
        )
    if found.gone:
        lines += [
            f"{counted(len(found.gone), 'accepted lead is', 'accepted leads are')} in neither the log "
            "nor PostgreSQL: lost, or erased",
            *([f"  {lead_id}" for lead_id in found.gone] if ids else ["  --ids lists them"]),
        ]
    return lines or ["nothing to repair: every stored position agrees with the log"]
