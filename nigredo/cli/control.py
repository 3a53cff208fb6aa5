"""`nigredo config`, `ip`, `maintenance`, `keys`: what may change while the product runs."""

from __future__ import annotations

import getpass
import re
from datetime import datetime, timedelta
from ipaddress import ip_network
from typing import TYPE_CHECKING, Any

import click

from nigredo.cli.output import Context, with_context

if TYPE_CHECKING:
    from nigredo.changes import Changes
    from schemas.events import ControlEntry

PART = "control"
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


class Duration(click.ParamType):
    """A time span such as 30s, 10m, 24h or 7d."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        """Return it; fails with what is expected."""
        found = re.fullmatch(r"([1-9]\d{0,4})([smhd])", str(value))
        if not found:
            self.fail("must be a number and a unit, such as 30s, 10m, 24h or 7d", param, ctx)
        return timedelta(seconds=int(found[1]) * _UNITS[found[2]])


lasts = click.option("--for", "lasts", type=Duration(), help="How long it holds, such as 24h  [default: until undone]")


def _changes(context: Context) -> Changes:
    from nigredo.changes import Changes

    return Changes(context.settings(PART, role="nigredo_app"), getpass.getuser())


def _until(lasts: timedelta | None) -> datetime | None:
    from nigredo.clock import utc_now

    return None if lasts is None else utc_now() + lasts


def _shown_until(until: datetime | None) -> str:
    return "" if until is None else f" until {until:%Y-%m-%d %H:%M:%S} UTC"


# --- settings ---------------------------------------------------------------------------------------------------------


@click.group()
def config() -> None:
    """Settings that may change while the product runs."""


@config.command(name="get")
@click.argument("name", required=False)
@with_context
def get(context: Context, name: str | None) -> None:
    """Show what holds, and where each value comes from: the default, the environment, or a change by somebody."""
    from nigredo.clock import utc_now
    from nigredo.control import SETTING, key_of
    from nigredo.errors import ConfigurationError
    from nigredo.settings import Settings

    names = Settings.live_names()
    if name is not None and name not in names:
        raise ConfigurationError(f"{name}: no setting of this name can change while it runs; see `nigredo config get`")
    standing = _changes(context).standing()
    environment = context.environment(PART, role="nigredo_app")
    found: dict[str, dict[str, str | None]] = {}
    for each in [name] if name else names:
        stands = standing.get(key_of(SETTING, each))
        entry = stands.entry if stands else None
        if entry is not None and (entry.expires_at is None or utc_now() < entry.expires_at):
            origin = f"set by {entry.set_by} on {entry.set_at:%Y-%m-%d %H:%M} UTC" + _shown_until(entry.expires_at)
            found[each] = {"value": entry.value.get("value", ""), "origin": origin}
        elif environment.get(each):
            found[each] = {"value": environment[each], "origin": "environment"}
        else:
            found[each] = {"value": Settings.default(each), "origin": "default"}
    lines = [f"{each}={told['value']}  ({told['origin']})" for each, told in found.items()]
    context.result(found, "\n".join(lines))


@config.command(name="set")
@click.argument("assignment", metavar="NAME=VALUE")
@lasts
@with_context
def set_(context: Context, assignment: str, lasts: timedelta | None) -> None:
    """Change one setting in every process; the others stay as they are."""
    from nigredo.errors import ConfigurationError

    name, given, text = assignment.partition("=")
    if not given:
        raise ConfigurationError("must be NAME=VALUE, such as RATE_LIMIT_PER_HOUR=20")
    change_setting(context, name, text, lasts)


def change_setting(context: Context, name: str, text: str, lasts: timedelta | None) -> None:
    """Change a setting in every process, and say so. Raises ConfigurationError, DependencyDown."""
    from nigredo.control import SETTING, setting_entry

    until = _until(lasts)
    _changes(context).put(SETTING, name, setting_entry(name, text), expires_at=until)
    context.result(
        {"name": name, "value": text, "until": until and until.isoformat()}, f"{name}={text}{_shown_until(until)}"
    )


@config.command()
@click.argument("name")
@with_context
def unset(context: Context, name: str) -> None:
    """Go back to what the environment says, or the default."""
    from nigredo.control import SETTING

    removed = _changes(context).remove(SETTING, name)
    context.result(
        {"name": name, "removed": removed}, f"{name} is as at the start" if removed else f"{name} was not set"
    )


# --- blocked addresses ------------------------------------------------------------------------------------------------


@click.group()
def ip() -> None:
    """Client addresses that are answered 403, whatever they ask for."""


@ip.command()
@click.argument("networks", nargs=-1, required=True, metavar="CIDR…")
@click.option("--reason", default="", help="Why, for whoever reads the list")
@click.option("--force", is_flag=True, help="Also a network so large that it blocks whole countries")
@lasts
@with_context
def block(context: Context, networks: tuple[str, ...], reason: str, force: bool, lasts: timedelta | None) -> None:
    """Block addresses or networks (IPv4 or IPv6), in every process, within a second."""
    from nigredo.control import IP_BLOCK
    from nigredo.errors import ConfigurationError

    wanted = [_network(text) for text in networks]
    large = [str(network) for network in wanted if network.prefixlen < (8 if network.version == 4 else 24)]
    if large and not force:
        raise ConfigurationError(f"{', '.join(large)} blocks far more than an abuser; --force if it is meant")
    changes, until = _changes(context), _until(lasts)
    for network in wanted:
        changes.put(IP_BLOCK, str(network), {"reason": reason}, expires_at=until)
    blocked = [str(network) for network in wanted]
    context.result(
        {"blocked": blocked, "until": until and until.isoformat()}, f"blocked {', '.join(blocked)}{_shown_until(until)}"
    )


@ip.command()
@click.argument("networks", nargs=-1, required=True, metavar="CIDR…")
@with_context
def unblock(context: Context, networks: tuple[str, ...]) -> None:
    """Let addresses or networks in again."""
    from nigredo.control import IP_BLOCK

    changes = _changes(context)
    found = {str(network): changes.remove(IP_BLOCK, str(network)) for network in map(_network, networks)}
    lines = [f"{network} {'let in again' if removed else 'was not blocked'}" for network, removed in found.items()]
    context.result(found, "\n".join(lines))


@ip.command(name="list")
@with_context
def list_(context: Context) -> None:
    """Show what is blocked, by whom and until when."""
    from nigredo.clock import utc_now
    from nigredo.control import IP_BLOCK

    entries = [stands.entry for stands in _changes(context).standing().values() if stands.entry.kind == IP_BLOCK]
    holding = [entry for entry in entries if entry.expires_at is None or utc_now() < entry.expires_at]
    document = [
        {
            "network": entry.name,
            "reason": entry.value.get("reason", ""),
            "by": entry.set_by,
            "since": entry.set_at.isoformat(),
            "until": entry.expires_at and entry.expires_at.isoformat(),
        }
        for entry in sorted(holding, key=lambda entry: entry.set_at)
    ]
    lines = [
        f"{entry.name}  since {entry.set_at:%Y-%m-%d %H:%M} UTC by {entry.set_by}{_shown_until(entry.expires_at)}"
        f"  {entry.value.get('reason', '')}".rstrip()
        for entry in sorted(holding, key=lambda entry: entry.set_at)
    ]
    context.result(document, "\n".join(lines) or "nothing is blocked")


def _network(text: str) -> Any:
    from nigredo.errors import ConfigurationError

    try:
        return ip_network(text)
    except ValueError:
        raise ConfigurationError(f"{text} is no address and no network in CIDR form, such as 192.0.2.0/24") from None


# --- maintenance ------------------------------------------------------------------------------------------------------


@click.group()
def maintenance() -> None:
    """Answer forms with a readable 503 while something is worked on."""


@maintenance.command()
@click.option("--text", help="What people read")
@lasts
@with_context
def on(context: Context, text: str | None, lasts: timedelta | None) -> None:
    """Take no forms until `nigredo maintenance off`, or for a time."""
    from nigredo.control import SETTING, setting_entry

    changes, until = _changes(context), _until(lasts)
    if text is not None:
        changes.put(SETTING, "MAINTENANCE_TEXT", setting_entry("MAINTENANCE_TEXT", text), expires_at=until)
    changes.put(SETTING, "MAINTENANCE_MODE", setting_entry("MAINTENANCE_MODE", "true"), expires_at=until)
    context.result(
        {"maintenance": True, "until": until and until.isoformat()}, f"no forms are taken{_shown_until(until)}"
    )


@maintenance.command()
@with_context
def off(context: Context) -> None:
    """Take forms again."""
    from nigredo.control import SETTING, setting_entry

    changes = _changes(context)
    changes.put(SETTING, "MAINTENANCE_MODE", setting_entry("MAINTENANCE_MODE", "false"))
    changes.remove(SETTING, "MAINTENANCE_TEXT")
    context.result({"maintenance": False}, "forms are taken")


# --- API keys ---------------------------------------------------------------------------------------------------------


@click.group()
def keys() -> None:
    """API keys for reading leads over HTTP; only their hashes are kept."""


@keys.command(name="create")
@click.argument("name")
@click.option("--scope", "scopes", multiple=True, default=("leads:read",), show_default=True, help="Repeatable")
@lasts
@with_context
def create_key(context: Context, name: str, scopes: tuple[str, ...], lasts: timedelta | None) -> None:
    """Create a key and print it, once: nobody can show it again. NAME says whose it is."""
    from nigredo.api_keys import SCOPES, as_value, create
    from nigredo.control import API_KEY
    from nigredo.errors import ConfigurationError

    if unknown := sorted(set(scopes) - set(SCOPES)):
        raise ConfigurationError(f"there is no scope {', '.join(unknown)}; there is {', '.join(SCOPES)}")
    text, key = create(name, frozenset(scopes))
    _changes(context).put(API_KEY, key.id, as_value(key), expires_at=_until(lasts))
    context.result({"id": key.id, "name": name, "key": text, "scopes": sorted(key.scopes)}, text)


@keys.command(name="list")
@with_context
def list_keys(context: Context) -> None:
    """Show which keys there are, what they may do, and until when."""
    found = sorted(_standing_keys(_changes(context)).values(), key=lambda entry: entry.set_at)
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
        f"since {entry.set_at:%Y-%m-%d %H:%M} UTC by {entry.set_by}{_shown_until(entry.expires_at)}"
        for entry in found
    ]
    context.result(document, "\n".join(lines) or "there are no keys")


@keys.command(name="rotate")
@click.argument("key_id", metavar="ID")
@click.option("--overlap", type=Duration(), default="24h", show_default=True, help="How long the old one still works")
@with_context
def rotate_key(context: Context, key_id: str, overlap: timedelta) -> None:
    """Create a key like an old one, print it, and let the old one end after the overlap."""
    from nigredo.api_keys import as_value, create, from_value
    from nigredo.control import API_KEY

    changes = _changes(context)
    old = from_value(key_id, _standing_key(changes, key_id).value)
    text, key = create(old.name, old.scopes)
    until = _until(overlap)
    changes.put(API_KEY, key.id, as_value(key))
    changes.put(API_KEY, old.id, as_value(old), expires_at=until)
    document = {"id": key.id, "name": key.name, "key": text, "old": old.id, "old_until": until and until.isoformat()}
    context.result(document, text)


@keys.command(name="revoke")
@click.argument("key_id", metavar="ID")
@with_context
def revoke_key(context: Context, key_id: str) -> None:
    """End a key, at every node within a second."""
    from nigredo.control import API_KEY

    changes = _changes(context)
    _standing_key(changes, key_id)
    changes.remove(API_KEY, key_id)
    context.result({"id": key_id, "revoked": True}, f"{key_id} is known no more")


def _standing_keys(changes: Changes) -> dict[str, ControlEntry]:
    from nigredo.clock import utc_now
    from nigredo.control import API_KEY

    entries = (stands.entry for stands in changes.standing().values() if stands.entry.kind == API_KEY)
    return {entry.name: entry for entry in entries if entry.expires_at is None or utc_now() < entry.expires_at}


def _standing_key(changes: Changes, key_id: str) -> ControlEntry:
    from nigredo.errors import ConfigurationError

    found = _standing_keys(changes).get(key_id)
    if found is None:
        raise ConfigurationError(f"there is no key with the id {key_id}; see `nigredo keys list`")
    return found


COMMANDS = (config, ip, maintenance, keys)
