"""`nigredo dead`: leads that delivery gave up for a receiver, and their redrive."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

import click

from nigredo.cli.output import Context, with_context
from nigredo.cli.replay import endpoint_option, require_endpoint, wait_until_settled, yes_option
from nigredo.errors import ConfigurationError, DependencyDown
from nigredo.kafka.topic_reader import TopicReader
from nigredo.operations.replay import ReplayService
from nigredo.operations.replay_plan import References
from nigredo.operations.webhook_topics import WebhookTopics
from nigredo.plural import counted
from schemas.events import WebhookDead
from schemas.topics import DEAD_LETTERS

PART = "dead"


@click.group()
def dead() -> None:
    """Dead leads: out of attempts, or refused for good by the receiver."""


@dead.command(name="list")
@click.option("--endpoint", default=None, help="Only of this receiver")
@with_context
def list_(context: Context, endpoint: str | None) -> None:
    """Show the dead leads, oldest first."""
    every = _replay_service(context).topics.dead()
    if endpoint is not None and not any(each.endpoint == endpoint for each in every):
        require_endpoint(context, endpoint)
    found = [each for each in every if endpoint in (None, each.endpoint)]
    lines = [
        f"{each.lead_id}  {each.endpoint}  {each.died_at:%Y-%m-%d %H:%M:%S} UTC  {each.reason}  "
        f"{each.status_code or '-'}  {each.error_message or ''}".rstrip()
        for each in found
    ]
    context.result([_document(each) for each in found], lines or _nothing(context))


def _nothing(context: Context) -> str:
    settings = context.settings(PART, role="nigredo_app")
    parked = len(WebhookTopics(settings, TopicReader(settings, PART)).standing(DEAD_LETTERS))
    return "nothing is dead" + (
        f"; {counted(parked, 'record is', 'records are')} parked: see `nigredo dead-letters list`" if parked else ""
    )


@dead.command()
@click.argument("lead_id", metavar="ID", type=click.UUID)
@with_context
def show(context: Context, lead_id: UUID) -> None:
    """Show a dead lead, once for every receiver it is dead for."""
    found = [_document(each) for each in _replay_service(context).topics.dead() if each.lead_id == lead_id]
    if not found:
        raise ConfigurationError(f"{lead_id} is not dead; see `nigredo dead list`")
    lines = [
        f"{name:<15} {'-' if value is None else value}" for each in found for name, value in (*each.items(), ("", ""))
    ]
    context.result(found, [line.rstrip() for line in lines[:-1]])


@dead.command()
@click.argument("lead_ids", metavar="ID…", nargs=-1, type=click.UUID)
@click.option("--all", "everything", is_flag=True, help="All dead leads of this receiver")
@endpoint_option
@click.option("--no-wait", is_flag=True, help="Return once the replay is requested; the sink sends by itself")
@yes_option
@with_context
def redrive(
    context: Context, lead_ids: tuple[UUID, ...], everything: bool, endpoint: str, no_wait: bool, yes: bool
) -> None:
    """Send dead leads again, behind live traffic; each stays dead until it is delivered. Safe to repeat."""
    if bool(lead_ids) == everything:
        raise click.UsageError("name the leads by their ids, or use --all")
    replays = _replay_service(context, endpoint)
    every = replays.topics.dead()
    found = {each.lead_id: each for each in every if each.endpoint == endpoint}
    if missing := [str(lead_id) for lead_id in lead_ids if lead_id not in found]:
        raise ConfigurationError(f"{', '.join(missing)}: not dead for {endpoint}; see `nigredo dead list`")
    if not found and every:
        others = ", ".join(sorted({each.endpoint for each in every}))
        raise ConfigurationError(f"no lead is dead for {endpoint}, but some are for {others}: choose by --endpoint")
    waiting = replays.topics.waiting(endpoint)
    chosen = [found[lead_id] for lead_id in dict.fromkeys(lead_ids or found)]
    # After a rewind live delivery may have delivered a dead lead, because it does not read the dead leads.
    oldest = min((each.died_at for each in chosen), default=None)
    delivered = replays.delivered_since(_references(chosen), oldest) if oldest else set()
    wanted = [each for each in chosen if each.lead_id.bytes not in waiting | delivered]
    document: dict[str, Any] = {
        "endpoint": endpoint,
        "delivered_already": sum(each.lead_id.bytes in delivered for each in chosen),
        "waiting": sum(each.lead_id.bytes in waiting - delivered for each in chosen),
        "to_send": len(wanted),
    }
    if not wanted:
        context.result(document, "nothing to send: no lead is dead, or all are delivered or wait for an attempt")
        return
    context.confirm(f"Send {counted(len(wanted), 'dead lead')} to {endpoint} again?", yes=yes)
    replays.request(_references(wanted), "dead leads")
    if no_wait:
        context.result(document, f"asked the sink to send {counted(len(wanted), 'lead')} again", changed=True)
        return
    wait_until_settled(context, replays.watch(_references(wanted)), len(wanted))
    left = {(each.lead_id, each.endpoint) for each in replays.topics.dead()}
    still = sum((each.lead_id, each.endpoint) in left for each in wanted)
    context.result(
        document | {"still_dead": still},
        f"sent {counted(len(wanted), 'lead')} again, {counted(still, 'is', 'are')} still dead",
        changed=True,
    )
    if still:
        raise DependencyDown(f"{counted(still, 'lead was', 'leads were')} not delivered (yet); see `nigredo dead list`")


def _references(dead: Sequence[WebhookDead]) -> list[References]:
    groups: dict[int, References] = {}
    for each in dead:
        partition = each.lead_partition
        groups.setdefault(partition, References(partition)).add(each.lead_id.bytes, each.lead_offset)
    return list(groups.values())


def _replay_service(context: Context, endpoint: str = "fibonacci") -> ReplayService:
    return ReplayService(context.settings(PART, role="nigredo_app"), endpoint, context.actor)


def _document(dead: WebhookDead) -> dict[str, Any]:
    return {
        "lead_id": str(dead.lead_id),
        "endpoint": dead.endpoint,
        "died_at": dead.died_at.isoformat(),
        "reason": dead.reason,
        "attempts": dead.attempts,
        "status_code": dead.status_code,
        "error_message": dead.error_message,
        "lead_partition": dead.lead_partition,
        "lead_offset": dead.lead_offset,
    }
