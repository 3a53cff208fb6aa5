"""`nigredo rewind`: offset reset of a consumer group, which processes its records again."""

from __future__ import annotations

import re
from dataclasses import asdict
from datetime import datetime
from typing import Any

import click

from nigredo.cli.output import Context, with_context
from nigredo.cli.replay import When, yes_option
from nigredo.components import PERSISTER, RATE_LIMITER, WEBHOOK_SENDER
from nigredo.errors import ConfigurationError
from nigredo.operations.rewind import DatabaseOffsets, KafkaOffsets, Offsets, PartitionRewind, Rewind, RewindTarget
from nigredo.plural import counted
from nigredo.settings import Settings
from schemas.topics import LEADS

PART = "rewind"


@click.command()
@click.argument("group")
@click.option("--to-datetime", "at", type=When(), help="To the first record of this time or later, in each partition")
@click.option("--to-offset", "places", multiple=True, metavar="[TOPIC:]P:O", help="To this offset; repeatable")
@click.option("--to-earliest", "earliest", is_flag=True, help="To the oldest record left")
@click.option("--accept-gaps", is_flag=True, help="Also when retention has deleted some of the records in between")
@click.option("--dry-run", is_flag=True, help="Only show the new offset of each partition")
@yes_option
@with_context
def rewind(
    context: Context,
    group: str,
    at: datetime | None,
    places: tuple[str, ...],
    earliest: bool,
    accept_gaps: bool,
    dry_run: bool,
    yes: bool,
) -> None:
    """Set a consumer GROUP back: it handles all records from there on again, so a sender repeats deliveries.

    Its members leave the group meanwhile, for at most two minutes. GROUP is a full name such as
    nigredo-webhook-sender-dev, or a part's: webhook-sender, webhook-sender-crm, persister.
    """
    if sum((at is not None, bool(places), earliest)) != 1:
        raise click.UsageError("choose the target by one of --to-datetime, --to-offset, --to-earliest")
    settings = context.settings(PART, role="nigredo_app")
    name, offsets = _group(settings, group)
    reset = Rewind(settings, name, offsets, context.actor)
    steps = reset.plan(_to(at, places, earliest, persister=name == settings.function(PERSISTER)))
    document: dict[str, Any] = {"group": name, "partitions": [asdict(step) for step in steps], "done": False}
    gone, moved = sum(step.gone for step in steps), sum(step.goes_to != step.stands_at for step in steps)
    lines, nothing = _described(steps), "nothing to do: no partition moves"
    if dry_run or not (moved or gone):
        context.result(document, lines if moved else [*lines, nothing])
        return
    if gone and not accept_gaps:
        context.tell(*lines)
        raise ConfigurationError(
            f"{gone} of the requested offsets were deleted by retention; --accept-gaps goes back to the first one left"
        )
    if not moved:
        context.result(document, [*lines, nothing])
        return
    context.tell(*lines)
    records = sum(step.records for step in steps)
    context.confirm(f"Set {name} back, so that {_come(records)} again?", yes=yes)
    reset.do(steps, context.tell)
    context.result(document | {"done": True}, f"{name} was set back; {_come(records)} again", changed=True)


def _group(settings: Settings, group: str) -> tuple[str, Offsets]:
    """Return a group's full name and its offset store. Raises ConfigurationError for a group that cannot be reset."""
    limiter, persister, sender = (settings.function(name) for name in (RATE_LIMITER, PERSISTER, WEBHOOK_SENDER))
    full = {RATE_LIMITER: limiter, PERSISTER: persister}.get(group, group)
    if full == WEBHOOK_SENDER or full.startswith("webhook-sender-"):
        full = sender + full.removeprefix(WEBHOOK_SENDER)
    if full == limiter:
        raise ConfigurationError(
            f"{limiter} cannot be set back: its windows are ahead of the log, so it would skip every record as handled"
        )
    if full == persister:
        return full, DatabaseOffsets(settings)
    if full == sender or full.startswith(f"{sender}-"):
        return full, KafkaOffsets(settings, full)
    raise ConfigurationError(f"there is no group {group}; there is {persister} and {sender}, with -ENDPOINT for others")


def _to(at: datetime | None, places: tuple[str, ...], earliest: bool, *, persister: bool) -> RewindTarget:
    offsets: dict[tuple[str, int], int] = {}
    for text in places:
        found = re.fullmatch(r"(?:([\w.-]+):)?(\d{1,9}):(\d{1,18})", text, re.ASCII)
        if found is None:
            raise ConfigurationError(f"{text}: must be a partition and an offset, such as 0:1500")
        if found[1] is None and persister:
            raise ConfigurationError(f"{text}: the persister reads several topics; say which, as in {LEADS}:{text}")
        partition = found[1] or LEADS, int(found[2])
        if partition in offsets:
            raise ConfigurationError(f"{text}: this partition is named twice")
        offsets[partition] = int(found[3])
    return RewindTarget(at=at, offsets=offsets or None, earliest=earliest)


def _described(steps: list[PartitionRewind]) -> list[str]:
    lines = []
    for step in steps:
        where = f"{step.topic} partition {step.partition}"
        if step.goes_to == step.stands_at and not step.gone:
            lines.append(f"{where}: stays at {step.stands_at}")
            continue
        line = f"{where}: {step.stands_at} -> {step.goes_to}, {_come(step.records)} again"
        gone = counted(step.gone, "offset before that was", "offsets before that were")
        lines.append(line + (f"; {gone} deleted by retention" if step.gone else ""))
    return lines


def _come(records: int) -> str:
    return counted(records, "record comes", "records come")
