"""`nigredo replay`: chosen leads sent again, behind live traffic."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from nigredo.cli.control import Duration
from nigredo.cli.output import Context, with_context
from nigredo.clock import utc_now
from nigredo.endpoints.endpoint import examine_endpoints
from nigredo.errors import ConfigurationError, DependencyDown
from nigredo.operations.replay import Plan, Range, ReplayProgress, ReplayService
from nigredo.operations.replay_plan import Rule
from nigredo.plural import counted

PART = "replay"
LINE_EVERY_S = 5.0
LOOK_EVERY_S = 0.25
STALLED_AFTER_S = 600.0
"""Seconds without progress after which the command stops waiting, because the sink may be paused for weeks."""


class When(click.ParamType):
    """A time such as 2026-01-31T09:30:00Z; without a zone it is UTC."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        """Return the time, in UTC; fails with the expected form."""
        if isinstance(value, datetime):
            return value
        try:
            at = datetime.fromisoformat(str(value))
        except ValueError:
            self.fail("must be a time such as 2026-01-31T09:30:00Z", param, ctx)
        return (at if at.tzinfo else at.replace(tzinfo=UTC)).astimezone(UTC)


class PartitionOffset(click.ParamType):
    """A partition and an offset, such as 0:1500."""

    name = "partition:offset"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        """Return partition and offset; fails with the expected form."""
        partition, _, offset = str(value).partition(":")
        if not (partition.isascii() and partition.isdecimal() and offset.isascii() and offset.isdecimal()):
            self.fail("must be a partition and an offset, such as 0:1500", param, ctx)
        return int(partition), int(offset)


def require_endpoint(context: Context, endpoint: str) -> None:
    """Raise ConfigurationError for an endpoint that never existed, because an empty list would mislead."""
    settings = context.settings(PART, role="nigredo_app")
    if endpoint not in examine_endpoints(settings)[0]:
        ReplayService(settings, endpoint, context.actor).topics.live_offsets(endpoint)


yes_option = click.option("--yes", is_flag=True, help="Do not ask")
endpoint_option = click.option("--endpoint", default="fibonacci", show_default=True, help="Which receiver")


@click.command()
@click.option("--since", type=Duration(), help="Leads of the last 1h, 30m, 7d, …")
@click.option("--from", "begin", type=When(), help="Leads from this time on, by record timestamp")
@click.option("--to", "end", type=When(), help="Leads before this time  [default: now; with --from]")
@click.option(
    "--from-offset",
    "offsets",
    type=PartitionOffset(),
    multiple=True,
    help="From this offset of a partition on; repeatable",
)
@click.option("--lead", "leads", type=click.UUID, multiple=True, help="This lead; repeatable")
@click.option("--failed-only", is_flag=True, help="Only leads with a failed attempt and no delivered one")
@click.option("--include-delivered", is_flag=True, help="Also leads that were delivered already")
@endpoint_option
@click.option("--dry-run", is_flag=True, help="Only show what would be sent")
@click.option("--no-wait", is_flag=True, help="Return once the replay is requested; the sink sends by itself")
@yes_option
@with_context
def replay(
    context: Context,
    since: timedelta | None,
    begin: datetime | None,
    end: datetime | None,
    offsets: tuple[tuple[int, int], ...],
    leads: tuple[UUID, ...],
    failed_only: bool,
    include_delivered: bool,
    endpoint: str,
    dry_run: bool,
    no_wait: bool,
    yes: bool,
) -> None:
    """Send leads again, behind live traffic and without touching its offsets.

    Delivered leads are left out unless included; leads with a scheduled attempt are left alone. Safe to interrupt and
    to repeat.
    """
    selection = _range(since, begin, end, offsets, leads)
    if failed_only and include_delivered:
        raise click.UsageError("--failed-only never sends a delivered lead; leave out --include-delivered")
    replays = ReplayService(context.settings(PART, role="nigredo_app"), endpoint, context.actor)
    rule = Rule(include_delivered=include_delivered, failed_only=failed_only)
    plan = replays.plan(selection, rule)
    document = _document(plan, selection, endpoint)
    if dry_run or not plan.counts.to_send:
        context.result(document, [*_described(plan, selection), *([] if plan.counts.to_send else ["nothing to send"])])
        _refuse_missing(plan, selection)
        if not (dry_run or plan.counts.asked_for or plan.not_reached):
            raise ConfigurationError("there is no lead in that range, so nothing is sent; see --dry-run")
        return
    context.tell(*_described(plan, selection))
    if not yes:
        context.confirm(f"Send {counted(plan.counts.to_send, 'lead')} to {endpoint} again?", yes=False)
        plan = replays.plan(selection, rule)  # The answer may have taken an hour.
        document = _document(plan, selection, endpoint)
    document |= _send(context, replays, plan, selection, wait=not no_wait)
    lines = f"asked the sink to send {counted(document['written'], 'lead')} again"
    if not no_wait:
        lines = f"sent {document['sent']} of {counted(document['written'], 'lead')} again, "
        lines += f"{document['delivered']} delivered"
    context.result(document, lines, changed=True)
    if not no_wait and document["delivered"] < document["written"]:
        raise DependencyDown(
            counted(document["written"] - document["delivered"], "lead was", "leads were")
            + " not delivered (yet); see `nigredo webhook undelivered` and `nigredo dead list`"
        )
    _refuse_missing(plan, selection)


def _range(
    since: timedelta | None,
    begin: datetime | None,
    end: datetime | None,
    offsets: tuple[tuple[int, int], ...],
    leads: tuple[UUID, ...],
) -> Range:
    if sum((since is not None, begin is not None, bool(offsets), bool(leads))) != 1:
        raise click.UsageError("choose leads by one of --since, --from (with --to), --from-offset, --lead")
    if end is not None and begin is None:
        raise click.UsageError("--to goes with --from")
    if len({partition for partition, _ in offsets}) != len(offsets):
        raise click.UsageError("--from-offset names a partition twice")
    now = utc_now()
    if since is not None:
        return Range(since=now - since, until=now)
    if begin is not None:
        if (end or now) <= begin:
            raise click.UsageError("--to must be later than --from, and --from in the past")
        return Range(since=begin, until=end or now)
    return Range(from_offsets=offsets, ids=frozenset(leads))


def _document(plan: Plan, selection: Range, endpoint: str) -> dict[str, Any]:
    counts = plan.counts
    return {
        "endpoint": endpoint,
        "from": selection.since and selection.since.isoformat(),
        "to": selection.until and selection.until.isoformat(),
        "in_range": counts.asked_for,
        "erased": counts.erased,
        "delivered_already": counts.delivered,
        "waiting": counts.waiting,
        "not_failed": counts.not_failed,
        "not_reached": plan.not_reached,
        "not_found": _missing(plan, selection),
        "to_send": counts.to_send,
    }


def _missing(plan: Plan, selection: Range) -> int:
    return max(0, len(selection.ids) - plan.counts.asked_for - plan.not_reached)


def _refuse_missing(plan: Plan, selection: Range) -> None:
    """Raise ConfigurationError when a requested lead does not exist; the others are sent all the same."""
    if missing := _missing(plan, selection):
        which = str(next(iter(selection.ids))) if len(selection.ids) == 1 else f"{missing} of {len(selection.ids)}"
        raise ConfigurationError(f"--lead: {which} not found; the id is another, or the lead was erased long ago")


def _described(plan: Plan, selection: Range) -> list[str]:
    counts = plan.counts
    rows = [
        (counts.asked_for, "leads in range"),
        (counts.erased, "erased: never sent"),
        (counts.delivered, "delivered already: left out"),
        (counts.waiting, "with a scheduled attempt: left alone"),
        (counts.not_failed, "without a failed attempt: left out"),
        (counts.to_send, "to send"),
    ]
    lines = [f"{count:>9}  {label}" for count, label in rows if count or label in ("leads in range", "to send")]
    if plan.not_reached:
        lines.append(f"{plan.not_reached:>9}  not reached by live delivery yet: sent by it")
    if missing := _missing(plan, selection):
        lines.append(f"{missing:>9}  not found")
    return lines


def _send(context: Context, replays: ReplayService, plan: Plan, selection: Range, *, wait: bool) -> dict[str, Any]:
    """Write the references of a plan and, with `wait`, wait until the sink has settled all of them."""
    total, began = plan.counts.to_send, utc_now()
    with _progress(context, "asking the sink", total) as shown:
        replays.request(plan.references, selection.describe(), shown)
    if not wait:
        return {"written": total}
    wait_until_settled(context, replays.watch(plan.references), total)
    delivered = replays.sent_again(plan.references, began)
    return {"written": total, "sent": total, "delivered": len(delivered)}


def wait_until_settled(context: Context, watched: ReplayProgress, total: int) -> None:
    """Show the progress until all leads are sent. Raises DependencyDown after `STALLED_AFTER_S` without progress."""
    left, moved_at = total, time.monotonic()
    try:
        context.tell(
            f"asked the sink to send {counted(total, 'lead')} again, behind live ones; Ctrl-C leaves that to it"
        )
        watched.open()
        with _progress(context, "sent", total) as shown:
            while left:
                time.sleep(LOOK_EVERY_S)
                if watched.left != left:
                    left, moved_at = watched.left, time.monotonic()
                elif time.monotonic() - moved_at > STALLED_AFTER_S:
                    raise DependencyDown(
                        f"{left} of {counted(total, 'lead')} not sent, none for {STALLED_AFTER_S / 60:g} minutes; "
                        "they are sent when the endpoint allows it, see `nigredo webhook status`"
                    )
                shown(total - left)
    except KeyboardInterrupt:
        context.tell(f"the sink goes on by itself: {left} of {counted(total, 'lead')} still to be sent")
        raise click.Abort from None
    finally:
        watched.close()


@contextmanager
def _progress(context: Context, label: str, total: int) -> Iterator[Any]:
    """Show the progress of a task: a bar on a terminal, otherwise a line every `LINE_EVERY_S`."""
    console = Console(stderr=True)
    columns = (TextColumn(label), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task, printed_at = bar.add_task("", total=total), [time.monotonic()]

        def show(done: int) -> None:
            bar.update(task, completed=done)
            if not console.is_terminal and time.monotonic() - printed_at[0] >= LINE_EVERY_S:
                printed_at[0] = time.monotonic()
                context.tell(f"{label}: {done} of {total}")

        yield show
