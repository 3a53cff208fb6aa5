"""`nigredo config`, `ip`, `maintenance`: what may change while the product runs."""

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
    from nigredo.control import SETTING, setting_entry
    from nigredo.errors import ConfigurationError

    name, given, text = assignment.partition("=")
    if not given:
        raise ConfigurationError("must be NAME=VALUE, such as RATE_LIMIT_PER_HOUR=20")
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


COMMANDS = (config, ip, maintenance)
