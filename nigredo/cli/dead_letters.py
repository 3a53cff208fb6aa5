"""`nigredo dead-letters`: parked records that a process could not handle; show, retry and discard them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any
from uuid import UUID

import click

from nigredo.cli.control import Duration
from nigredo.cli.output import Context, with_context
from nigredo.cli.replay import yes_option
from nigredo.clock import utc_now
from nigredo.errors import ConfigurationError, NigredoError, RecordRefused
from nigredo.kafka.record import Record
from nigredo.operations.dead_letters import DeadLetters, NotRetried, Parked, chosen
from nigredo.plural import counted
from nigredo.postgres.pool import make_pool
from nigredo.settings import Settings
from processors.persistence.rows import rows_of
from processors.persistence.store import Store
from schemas.events import Event

PART = "dead-letters"


@click.group(name="dead-letters")
def dead_letters() -> None:
    """Dead letters: records that a process could not handle, parked for 90 days with the reason."""


def _filters(command: Callable[..., None]) -> Callable[..., None]:
    for option in (
        click.option("--topic", help="Only of this topic, such as nigredo.leads"),
        click.option("--reason", help="Only with this reason, such as undecodable"),
        click.option("--last", type=Duration(), help="Only parked in the last 1h, 30m, 7d, …"),
    ):
        command = option(command)
    return command


@dead_letters.command(name="list")
@_filters
@with_context
def list_(context: Context, topic: str | None, reason: str | None, last: timedelta | None) -> None:
    """Show the dead letters, oldest first, without personal data."""
    found = _filtered(_letters(context).waiting(), topic, reason, last)
    lines = [
        f"{each.letter.parked_at:%Y-%m-%d %H:%M:%S} UTC  {each.id}  {each.letter.reason}  {each.letter.error}".rstrip()
        for each in found
    ]
    context.result([_document(parked) for parked in found], lines or "no record is parked")


@dead_letters.command()
@click.argument("letter_id", metavar="ID")
@click.option("--payload", is_flag=True, help="Also key and contents, including personal data")
@with_context
def show(context: Context, letter_id: str, payload: bool) -> None:
    """Show a dead letter: reason, topic-partition and offset, headers, sizes."""
    letters = _letters(context)
    (parked,) = _by_id(letters.waiting(), [letter_id])
    headers = {each.key: (each.value or b"").decode(errors="replace") for each in parked.letter.headers}
    document = _document(parked) | {"headers": headers}
    if payload:
        key = parked.letter.key
        document |= {"key": None if key is None else key.decode(errors="replace"), **letters.payload(parked)}
    context.result(document, [f"{name:<17} {'-' if value is None else value}" for name, value in document.items()])


@dead_letters.command()
@click.argument("letter_ids", metavar="ID…", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="All that match the filters")
@_filters
@click.option("--dry-run", is_flag=True, help="Only list the matching records")
@yes_option
@with_context
def retry(context: Context, letter_ids: tuple[str, ...], everything: bool, **options: Any) -> None:
    """Retry records once their cause is fixed. Safe to interrupt and to repeat.

    A submission is appended to its topic again, and the limiter judges it as of now. A record that the persister could
    not store is stored; a lead that a sender could not read is sent by that sender; both keep their id. A record that
    still cannot be read stays parked.
    """
    letters = _letters(context)
    _act(context, letters.waiting(), letters.retry, letter_ids, everything, "Put {} back?", "put back", **options)


@dead_letters.command()
@click.argument("letter_ids", metavar="ID…", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="All that match the filters")
@_filters
@click.option("--dry-run", is_flag=True, help="Only list the matching records")
@yes_option
@with_context
def discard(context: Context, letter_ids: tuple[str, ...], everything: bool, **options: Any) -> None:
    """Discard records for good; the audit stores their ids and the operator's name."""
    letters = _letters(context)
    question = "Discard {} for good?"
    _act(context, letters.waiting(), letters.discard, letter_ids, everything, question, "discarded", **options)


def _act(
    context: Context,
    waiting: Sequence[Parked],
    work: Callable[[Sequence[Parked], Callable[[Parked, str | None], None]], None],
    letter_ids: Sequence[str],
    everything: bool,
    question: str,
    done: str,
    *,
    topic: str | None,
    reason: str | None,
    last: timedelta | None,
    dry_run: bool,
    yes: bool,
) -> None:
    if bool(letter_ids) == everything:
        raise ConfigurationError("name the records by their ids, or use --all (with --topic, --reason or --last)")
    wanted = _filtered(_by_id(waiting, letter_ids) if letter_ids else waiting, topic, reason, last)
    document: dict[str, Any] = {"ids": [parked.id for parked in wanted], "done": 0, "left": []}
    if dry_run or not wanted:
        context.result(document, [parked.id for parked in wanted] or "no record is parked")
        return
    context.confirm(question.format(counted(len(wanted), "record")), yes=yes)

    def note_outcome(parked: Parked, why: str | None) -> None:
        if why is None:
            document["done"] += 1
        else:
            document["left"].append({"id": parked.id, "why": why})

    work(wanted, note_outcome)
    lines = [f"{each['id']} is left: {each['why']}" for each in document["left"]]
    context.result(document, [*lines, f"{counted(document['done'], 'record')} {done}"], changed=True)
    if document["left"]:
        raise NigredoError(f"{len(document['left'])} of {counted(len(wanted), 'record')} left as before")


def _by_id(waiting: Sequence[Parked], letter_ids: Sequence[str]) -> list[Parked]:
    by_id = {parked.id: parked for parked in waiting}
    if missing := [letter_id for letter_id in letter_ids if letter_id not in by_id]:
        raise ConfigurationError(f"{', '.join(missing)}: no such dead letter; see `nigredo dead-letters list`")
    return [by_id[letter_id] for letter_id in dict.fromkeys(letter_ids)]


def _filtered(waiting: Sequence[Parked], topic: str | None, reason: str | None, last: timedelta | None) -> list[Parked]:
    return chosen(waiting, topic=topic, reason=reason, since=None if last is None else utc_now() - last)


def _letters(context: Context) -> DeadLetters:
    settings = context.settings(PART, role="nigredo_app")
    return DeadLetters(settings, context.actor, lambda record, event: asyncio.run(_store(settings, record, event)))


async def _store(settings: Settings, record: Record, event: Event | None) -> None:
    """Store a record's rows with the persister's own statements, which are idempotent.

    Raises NotRetried when the database still refuses the rows.
    """
    pool = make_pool(settings, PART, size_max=1)
    await pool.open()
    try:
        await Store(pool).write(rows_of([(record, event)]), [])
    except RecordRefused as error:
        raise NotRetried(f"the database still refuses it: {error.error}") from error
    finally:
        await pool.close(timeout=5.0)


def _document(parked: Parked) -> dict[str, Any]:
    letter = parked.letter
    return {
        "id": parked.id,
        "function": letter.function,
        "reason": letter.reason,
        "error": letter.error,
        "parked_at": letter.parked_at.isoformat(),
        "topic": letter.origin_topic,
        "partition": letter.origin_partition,
        "offset": letter.origin_offset,
        "timestamp": letter.origin_timestamp.isoformat(),
        "lead_id": _lead_id(letter.key),
        "key_bytes": len(letter.key or b""),
        "value_bytes": None if letter.value is None else len(letter.value),
    }


def _lead_id(key: bytes | None) -> str | None:
    """Return a key that is a lead's id, else None, because any other key may hold a client's address."""
    try:
        return str(UUID((key or b"").decode()))
    except ValueError:
        return None
