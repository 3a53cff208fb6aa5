"""`nigredo schemas`: the schema ids pinned in the log, compared with the registry that external readers ask."""

from __future__ import annotations

from typing import Any

import click

from nigredo.cli.output import Context, with_context
from nigredo.endpoints.endpoint import examine_endpoints
from nigredo.errors import NigredoError
from nigredo.operations.schema_ids import Finding, SchemaIds, ensure_schemas, patiently
from nigredo.plural import counted


@click.group()
def schemas() -> None:
    """Schema ids pinned in the log, and the registry beside them."""


@schemas.command(name="list")
@with_context
def list_(context: Context) -> None:
    """Show the schema of each pinned id, and the registry's answer for it."""
    found = _findings(context)
    context.result([_document(each) for each in found], list(map(_line, found)) or "no id is pinned yet")


@schemas.command()
@with_context
def check(context: Context) -> None:
    """Compare the ids with the registry; exit code 0 only when external readers find every id."""
    found = _findings(context)
    wrong = [each for each in found if each.standing != "known"]
    context.result(
        [_document(each) for each in wrong],
        list(map(_line, wrong)) or f"{counted(len(found), 'id is', 'ids are')} right",
    )
    if wrong:
        raise NigredoError(
            f"{len(wrong)} of {counted(len(found), 'id')} not in the registry as pinned here: `nigredo schemas repair`"
        )


@schemas.command()
@click.option("--dry-run", is_flag=True, help="Only show the changes")
@with_context
def repair(context: Context, dry_run: bool) -> None:
    """Restore ids that the registry lost, and replace ids that it gave to other schemas; safe to repeat."""
    settings = context.settings("schemas", role="nigredo_app")
    ids = SchemaIds(settings)
    # Idempotent: a retry after a lost connection finds the finished changes done.
    lines = patiently(lambda: ids.repair(dry_run=dry_run))
    if not dry_run:
        lines += ensure_schemas(settings, examine_endpoints(settings)[0])
    context.result({"changes": lines, "dry_run": dry_run}, lines or "nothing to repair", changed=not dry_run)


def _findings(context: Context) -> list[Finding]:
    return patiently(SchemaIds(context.settings("schemas", role="nigredo_app")).findings)


def _line(found: Finding) -> str:
    note = {"known": "", "missing": "the registry does not have it", "taken": f"{found.other} in the registry"}
    written = "written" if found.written else ""
    return f"{found.pin.id:>6}  {found.pin.name:<48} {written:<9}{note[found.standing]}".rstrip()


def _document(found: Finding) -> dict[str, Any]:
    return {
        "id": found.pin.id,
        "subject": found.pin.subject,
        "version": found.pin.version,
        "written": found.written,
        "registry": found.standing,
        "registry_subjects": list(found.subjects),
    }
