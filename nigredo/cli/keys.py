"""`nigredo keys`: API keys, stored only as hashes."""

from __future__ import annotations

from datetime import timedelta

import click

from nigredo.cli.control import Duration, changes_of, lasts, shown_until, until_of
from nigredo.cli.obeyed import end_unless_obeyed, report_change
from nigredo.cli.output import Context, with_context
from nigredo.clock import utc_now
from nigredo.control.admin import Change, ControlAdmin
from nigredo.control.api_keys import SCOPES, as_value, create, from_value
from nigredo.control.state import API_KEY
from nigredo.errors import ConfigurationError
from schemas.events import ControlEntry

HEIR = "heir"
"""Field in the entry of a rotated key: the id of its successor."""


@click.group()
def keys() -> None:
    """API keys for reading leads over HTTP; only their hashes are stored."""


@keys.command(name="create")
@click.argument("name")
@click.option("--scope", "scopes", multiple=True, default=("leads:read",), show_default=True, help="Repeatable")
@lasts
@with_context
def create_key(context: Context, name: str, scopes: tuple[str, ...], lasts: timedelta | None) -> None:
    """Create a key and print it once, because only its hash is stored. NAME says whose key it is."""
    if unknown := sorted(set(scopes) - set(SCOPES)):
        raise click.UsageError(f"there is no scope {', '.join(unknown)}; there is {', '.join(SCOPES)}")
    (text, key), until = create(name, frozenset(scopes)), until_of(lasts)
    changes = changes_of(context)
    changes.put(API_KEY, key.id, as_value(key), expires_at=until)
    document = {"id": key.id, "name": name, "key": text, "scopes": sorted(key.scopes)}
    context.result(document | {"until": until and until.isoformat()}, text, changed=True)
    end_unless_obeyed(context, changes)


@keys.command(name="list")
@with_context
def list_keys(context: Context) -> None:
    """Show the current keys with their scopes and ends."""
    found = sorted(_current_keys(changes_of(context)).values(), key=lambda entry: entry.set_at)
    document = [
        {
            "id": entry.name,
            "name": entry.value.get("name", ""),
            "scopes": entry.value.get("scopes", "").split(),
            "by": entry.set_by,
            "since": entry.set_at.isoformat(),
            "until": entry.expires_at and entry.expires_at.isoformat(),
        }
        for entry in found
    ]
    lines = [
        f"{entry.name}  {entry.value.get('name', '')}  {entry.value.get('scopes', '')}  "
        f"since {entry.set_at:%Y-%m-%d %H:%M} UTC by {entry.set_by}{shown_until(entry.expires_at)}"
        for entry in found
    ]
    context.result(document, lines or "there are no keys")


@keys.command(name="rotate")
@click.argument("key_id", metavar="ID")
@click.option("--overlap", type=Duration(), default="24h", show_default=True, help="How long the old one still works")
@with_context
def rotate_key(context: Context, key_id: str, overlap: timedelta) -> None:
    """Replace a key: print a new key of the same name and scopes, and let the old one expire after the overlap.

    An end of the old key applies to the new key too, and bounds the overlap.
    """
    changes = changes_of(context)
    entry = _current_key(changes, key_id)
    if heir := entry.value.get(HEIR):
        raise ConfigurationError(f"{key_id} was rotated before, and ends; rotate the key that followed it: {heir}")
    old = from_value(key_id, entry.value)
    text, key = create(old.name, old.scopes)
    end, old_until = entry.expires_at, utc_now() + overlap
    old_until = old_until if end is None else min(old_until, end)
    changes.apply(
        [
            Change(API_KEY, key.id, as_value(key), end),
            Change(API_KEY, old.id, {**as_value(old), HEIR: key.id}, old_until),
        ]
    )
    document = {"id": key.id, "name": key.name, "key": text, "until": end and end.isoformat()}
    document |= {"old": old.id, "old_until": old_until.isoformat()}
    context.result(document, text, changed=True)
    end_unless_obeyed(context, changes)


@keys.command(name="revoke")
@click.argument("key_id", metavar="ID")
@with_context
def revoke_key(context: Context, key_id: str) -> None:
    """Revoke a key, at every node within a second."""
    changes = changes_of(context)
    _current_key(changes, key_id)
    changes.remove(API_KEY, key_id)
    report_change(context, changes, {"id": key_id, "revoked": True}, f"{key_id} is revoked")


def _current_keys(changes: ControlAdmin) -> dict[str, ControlEntry]:
    return {entry.name: entry for entry in changes.held(API_KEY)}


def _current_key(changes: ControlAdmin, key_id: str) -> ControlEntry:
    found = _current_keys(changes).get(key_id)
    if found is None:
        raise ConfigurationError(f"there is no key with the id {key_id}; see `nigredo keys list`")
    return found
