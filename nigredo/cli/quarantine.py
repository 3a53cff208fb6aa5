"""`nigredo quarantine`: refused submissions, and the release of one as a lead."""

from __future__ import annotations

import sys
from collections.abc import Collection
from datetime import timedelta
from typing import Any
from uuid import UUID

import click

from nigredo.cli.control import PART, Duration
from nigredo.cli.output import Context, with_context
from nigredo.clock import utc_now
from nigredo.errors import ConfigurationError, NigredoError
from nigredo.operations.limit_commands import LimiterCommands
from nigredo.operations.limit_queries import accepted_submissions
from nigredo.operations.quarantine import Quarantine
from nigredo.plural import counted
from schemas.events import Rejection

RELEASE_DEADLINE_S = 60.0


def _quarantine(context: Context) -> Quarantine:
    return Quarantine(LimiterCommands(context.settings(PART, role="nigredo_app"), context.actor))


def _described(rejection: Rejection) -> dict[str, Any]:
    return {
        "id": str(rejection.id),
        "submitted_at": rejection.submitted_at.isoformat(),
        "client_network": rejection.client_network,
        "reason": rejection.reason,
        "spam_sign": rejection.spam_sign,
        "source": rejection.source,
    }


def _reason(rejection: Rejection) -> str:
    return f"{rejection.reason} ({rejection.spam_sign})" if rejection.spam_sign else rejection.reason


@click.group()
def quarantine() -> None:
    """Refused submissions: over the limit, spam, duplicates. Stored for 30 days, and can be released."""


@quarantine.command(name="list")
@click.option("--reason", type=click.Choice(["rate_limited", "spam", "duplicate"]), help="Only these")
@click.option("--last", type=Duration(), default="24h", show_default=True, help="How far back, such as 7d")
@click.option("--limit", type=click.IntRange(1, 100_000), default=50, show_default=True, help="How many, newest first")
@with_context
def list_(context: Context, reason: str | None, last: timedelta, limit: int) -> None:
    """Show the refused submissions, newest first, without personal data."""
    kept = _quarantine(context).kept(since=utc_now() - last).values()
    found = [each.rejection for each in kept if reason in (None, each.rejection.reason)]
    found.sort(key=lambda rejection: rejection.submitted_at, reverse=True)
    lines = [
        f"{each.id}  {each.submitted_at:%Y-%m-%d %H:%M:%S} UTC  {each.client_network}  {_reason(each)}  "
        f"{each.source or ''}".rstrip()
        for each in found[:limit]
    ]
    if len(found) > limit:
        lines.append(f"and {len(found) - limit} more: --limit")
    context.result([_described(each) for each in found[:limit]], lines or "nothing was refused in that time")


@quarantine.command()
@click.argument("lead_id", type=click.UUID, metavar="ID")
@click.option("--content", is_flag=True, help="Also personal data; on a terminal only")
@with_context
def show(context: Context, lead_id: UUID, content: bool) -> None:
    """Show one refused submission, and with --content the person's name, e-mail and message."""
    if content and not sys.stdout.isatty():
        raise ConfigurationError("--content shows personal data, so only on a terminal")
    kept = _quarantine(context).kept(ids=[lead_id]).get(lead_id)
    if kept is None:
        raise ConfigurationError(f"{lead_id} is not in quarantine: put through, erased, past its 30 days, or never was")
    rejection = kept.rejection
    document = _described(rejection) | {
        "ip_address": rejection.ip_address,
        "user_agent": rejection.user_agent,
        "form_id": rejection.form_id,
        "taken_at": rejection.taken_at.isoformat(),
        "retry_at": rejection.retry_at and rejection.retry_at.isoformat(),
        "partition": kept.partition,
        "offset": kept.offset,
    }
    if content:
        contact = rejection.contact
        document |= {"name": contact.name, "email": contact.email, "message": contact.message}
        document["extra"] = dict(contact.extra)
    # Line breaks in a message are shown as line breaks, indented.
    lines = [
        line
        for name, value in document.items()
        if value not in (None, {})
        for line in f"{name}: {value}".replace("\r\n", "\n").replace("\n", "\n  ").split("\n")
    ]
    context.result(document, lines)


@quarantine.command()
@click.argument("lead_ids", nargs=-1, required=True, type=click.UUID, metavar="ID…")
@click.option("--yes", is_flag=True, help="Do not ask")
@with_context
def release(context: Context, lead_ids: tuple[UUID, ...], yes: bool) -> None:
    """Release refused submissions as leads, outside the limit: stored and delivered as any other.

    Each is released once, however often the command is repeated.
    """
    quarantine, wanted = _quarantine(context), list(dict.fromkeys(lead_ids))
    kept = quarantine.kept(ids=wanted)
    gone = [each for each in wanted if each not in kept]
    unknown = set(gone) - _settled(context, gone)
    if unknown:
        raise ConfigurationError(
            f"{', '.join(sorted(map(str, unknown)))}: not in quarantine, and no lead either; nothing was put through"
        )
    answers: dict[UUID, tuple[int, int]] = {}
    if kept:
        context.confirm(f"Put {counted(len(kept), 'refused submission')} through, to the receiver?", yes=yes)
        answers |= quarantine.release(kept.values(), deadline_s=RELEASE_DEADLINE_S)
        left = quarantine.kept(ids=[each for each in kept if each not in answers]) if len(answers) < len(kept) else {}
        if left:
            raise NigredoError(f"{', '.join(map(str, left))}: the rate limiter did not put them through; see its log")
    document = [
        {"id": str(each), "released": each in answers, "partition": place and place[0], "offset": place and place[1]}
        for each in wanted
        for place in [answers.get(each)]
    ]
    lines = [
        f"{each} is a lead now (nigredo.leads, partition {answers[each][0]}, offset {answers[each][1]})"
        if each in answers
        else f"{each} was put through before"
        for each in wanted
    ]
    context.result(document, lines, changed=True)


def _settled(context: Context, lead_ids: Collection[UUID]) -> set[UUID]:
    """Return the ids among these that are leads by now, according to the database."""
    if not lead_ids:
        return set()
    return accepted_submissions(context.settings(PART, role="nigredo_app"), lead_ids)
