"""`nigredo config`, `ip`, `maintenance`: changes to the running product through the topic `nigredo.control`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from ipaddress import IPv4Address
from typing import Any

import click

from nigredo.cli.obeyed import end_unless_obeyed, report_change
from nigredo.cli.output import Context, complain, with_context
from nigredo.clock import utc_now
from nigredo.control.admin import Change, ControlAdmin
from nigredo.control.state import IP_BLOCK, SETTING, beneath, setting_entry
from nigredo.errors import ConfigurationError
from nigredo.networks import Network, parse_network, unmapped
from nigredo.settings import Settings
from schemas.events import ControlEntry

PART = "control"
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


class Duration(click.ParamType):
    """A time span such as 30s, 10m, 24h or 7d."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        """Return the time span; fails with the expected form."""
        found = re.fullmatch(r"([1-9]\d{0,4})([smhd])", str(value))
        if not found:
            self.fail("must be a number and a unit, such as 30s, 10m, 24h or 7d", param, ctx)
        return timedelta(seconds=int(found[1]) * _UNITS[found[2]])


lasts = click.option("--for", "lasts", type=Duration(), help="How long it holds, such as 24h  [default: until undone]")


def changes_of(context: Context) -> ControlAdmin:
    """Return the reader and writer of the target's control topic."""
    return ControlAdmin(context.settings(PART, role="nigredo_app"), context.actor)


def until_of(lasts: timedelta | None) -> datetime | None:
    """Return the end of a change that starts now and lasts so long; None for one without an end."""
    return None if lasts is None else utc_now() + lasts


def shown_until(until: datetime | None) -> str:
    """Return the end as a phrase for a line; empty without one."""
    return "" if until is None else f" until {until:%Y-%m-%d %H:%M:%S} UTC"


# --- settings ---------------------------------------------------------------------------------------------------------


@click.group()
def config() -> None:
    """Settings that can change while the product runs."""


@config.command(name="get")
@click.argument("name", required=False)
@with_context
def get(context: Context, name: str | None) -> None:
    """Show the current values, each with its origin: the default, the environment, or an operator's change.

    The environment is that of the running stack; without a stack it is this command's own, and stderr says so.
    """
    names = Settings.live_names()
    if name is not None and name not in names:
        raise ConfigurationError(f"{name}: no setting of this name can change while it runs; see `nigredo config get`")
    held = {entry.name: entry for entry in changes_of(context).held(SETTING)}
    found = {each: _found(context, each, held.get(each)) for each in ([name] if name else names)}
    if any(each not in held or held[each].expires_at for each in found):
        context.warn_of_own_settings()
    context.result(found, [f"{each}={setting['value']}  ({setting['origin']})" for each, setting in found.items()])


def _found(context: Context, name: str, entry: ControlEntry | None) -> dict[str, str | None]:
    """Return value, origin and end of a setting. entry: the change in the control topic, if any."""
    if entry is None:
        given = context.environment(PART, role="nigredo_app").get(name)
        origin = "environment" if given else "default"
        return {"value": given or Settings.default(name), "origin": origin, "until": None}
    origin = f"set by {entry.set_by} on {entry.set_at:%Y-%m-%d %H:%M} UTC{shown_until(entry.expires_at)}"
    if entry.expires_at is not None:
        then = _found(context, name, beneath(entry))
        origin += f", then {then['value']} again, {then['origin']}"
    until = None if entry.expires_at is None else entry.expires_at.isoformat()
    return {"value": entry.value.get("value", ""), "origin": origin, "until": until}


@config.command(name="set")
@click.argument("assignments", nargs=-1, required=True, metavar="NAME=VALUE…")
@lasts
@with_context
def set_(context: Context, assignments: tuple[str, ...], lasts: timedelta | None) -> None:
    """Change settings in every process: all of the named ones or none.

    With --for, the last value without an end is restored afterwards.
    """
    wanted: dict[str, str] = {}
    for assignment in assignments:
        name, given, text = assignment.partition("=")
        if not given:
            raise click.UsageError(f"{assignment}: must be NAME=VALUE, such as RATE_LIMIT_PER_HOUR=20")
        if name in wanted:
            raise click.UsageError(f"{name} is given twice")
        wanted[name] = text
    change_settings(context, wanted, lasts)


def change_settings(context: Context, wanted: Mapping[str, str], lasts: timedelta | None) -> None:
    """Change settings in every process and print the result.

    Raises UsageError for values that cannot work, before any is changed, and DependencyDown.
    """
    changes, until = changes_of(context), until_of(lasts)
    after = put_settings(context, changes, wanted, until)
    lines = [
        f"{name}={text}{shown_until(until)}"
        + (f", then {after[name]['value']} again ({after[name]['origin']})" if name in after else "")
        for name, text in wanted.items()
    ]
    document: dict[str, Any] = {"settings": dict(wanted), "until": until and until.isoformat()}
    if len(wanted) == 1:
        ((document["name"], document["value"]),) = wanted.items()
    report_change(context, changes, document, lines)


def put_settings(
    context: Context,
    changes: ControlAdmin,
    wanted: Mapping[str, str],
    until: datetime | None,
    *,
    also: Sequence[Change] = (),
) -> dict[str, dict[str, str | None]]:
    """Write settings, and other changes with them; return value and origin that each has after its end, if any.

    Raises UsageError for values that cannot work, before any is written, and DependencyDown.
    """
    try:
        entries = [Change(SETTING, name, setting_entry(name, text), until) for name, text in wanted.items()]
    except ConfigurationError as error:
        raise click.UsageError(str(error)) from None
    permanent = changes.apply([*entries, *also])
    if until is None:
        return {}
    return {name: _found(context, name, entry) for name, entry in zip(wanted, permanent, strict=False)}


def afterwards_too(after: Mapping[str, str | None] | None, text: str) -> str:
    """Return the addition to a line when a flag keeps its value after its end, so that nothing restarts by itself."""
    if after is None or Settings.parse("MAINTENANCE_MODE", after["value"] or "") != Settings.parse(
        "MAINTENANCE_MODE", text
    ):
        return ""
    return f", and afterwards too ({after['origin']})"


@config.command()
@click.argument("name")
@with_context
def unset(context: Context, name: str) -> None:
    """Remove a change, so that the value of the environment or the default holds again."""
    changes = changes_of(context)
    removed = changes.remove(SETTING, name)
    if not removed and name not in Settings.live_names():
        raise ConfigurationError(f"{name}: no setting of this name can change while it runs; see `nigredo config get`")
    line = f"{name} is as at the start" if removed else f"{name} was not changed: it is as at the start"
    report_change(context, changes, {"name": name, "removed": removed}, line)


# --- blocked addresses ------------------------------------------------------------------------------------------------


@click.group()
def ip() -> None:
    """Blocked client addresses: every request is answered 403."""


@ip.command()
@click.argument("networks", nargs=-1, required=True, metavar="CIDR…")
@click.option("--reason", default="", help="Shown by `nigredo ip list`")
@click.option("--force", is_flag=True, help="Also a network so large that it blocks whole countries")
@lasts
@with_context
def block(context: Context, networks: tuple[str, ...], reason: str, force: bool, lasts: timedelta | None) -> None:
    """Block addresses or networks (IPv4 or IPv6) in every process, within a second.

    With --for, an existing block without an end stays.
    """
    wanted = list(dict.fromkeys(_network(text) for text in networks))
    large = [str(network) for network in wanted if network.prefixlen < (8 if network.version == 4 else 24)]
    if large and not force:
        raise click.UsageError(f"{', '.join(large)} blocks far more than an abuser; --force if it is meant")
    until = until_of(lasts)
    put = [Change(IP_BLOCK, str(network), {"reason": reason}, until) for network in wanted]
    changes = changes_of(context)
    permanent = changes.apply(put)
    lines = [
        f"blocked {network}" + (shown_until(until) if entry is None else ", without an end as before")
        for network, entry in zip(wanted, permanent, strict=True)
    ]
    blocked = [str(network) for network in wanted]
    report_change(context, changes, {"blocked": blocked, "until": until and until.isoformat()}, lines)


@ip.command()
@click.argument("networks", nargs=-1, required=True, metavar="CIDR…")
@with_context
def unblock(context: Context, networks: tuple[str, ...]) -> None:
    """Unblock addresses or networks. The exit code is 0 only when all were blocked and none is blocked any more."""
    changes, wanted = changes_of(context), list(dict.fromkeys(map(_network, networks)))
    # Compared by network, because an earlier release stored a mapped IPv6 address as it was typed.
    blocks = [(entry.name, network) for entry in changes.held(IP_BLOCK) if (network := _parsed(entry.name)) is not None]
    removed = [name for name, network in blocks if network in wanted]
    changes.apply([Change(IP_BLOCK, name, None) for name in removed])
    left = [network for name, network in blocks if name not in removed]
    found = {network: any(network == other for _, other in blocks) for network in wanted}
    lines, problems = [], []
    for network, was_blocked in found.items():
        cover = [str(other) for other in left if other.version == network.version and other.supernet_of(network)]  # type: ignore[arg-type] # of one version
        if cover:
            problems.append(f"{network} is still blocked, by {', '.join(cover)}")
        elif not was_blocked:
            problems.append(f"{network} was not blocked")
        else:
            lines.append(f"{network} let in again")
    context.result({str(network): was_blocked for network, was_blocked in found.items()}, lines, changed=True)
    for problem in problems:
        complain(problem)
    end_unless_obeyed(context, changes)
    if problems:
        raise click.exceptions.Exit(1)


@ip.command(name="list")
@with_context
def list_(context: Context) -> None:
    """Show the blocked networks, by whom and until when."""
    entries = changes_of(context).held(IP_BLOCK)
    document, lines = [], []
    for entry in entries:
        permanent = beneath(entry)
        # A block with an end adds nothing to a block without one.
        shown, until = permanent or entry, None if permanent else entry.expires_at
        document.append(
            {
                "network": str(_parsed(entry.name) or entry.name),
                "reason": shown.value.get("reason", ""),
                "by": shown.set_by,
                "since": shown.set_at.isoformat(),
                "until": until and until.isoformat(),
            }
        )
        lines.append(
            f"{document[-1]['network']}  since {shown.set_at:%Y-%m-%d %H:%M} UTC by {shown.set_by}{shown_until(until)}"
            f"  {shown.value.get('reason', '')}".rstrip()
        )
    context.result(document, lines or "nothing is blocked")


def _network(text: str) -> Network:
    found = _parsed(text)
    if found is None:
        raise click.UsageError(f"{text} is no address and no network in CIDR form, such as 192.0.2.0/24")
    if isinstance(unmapped(found.network_address), IPv4Address) and found.version != 4 and found.prefixlen >= 96:
        raise click.UsageError(f"{text}: such addresses count as the IPv4 addresses in them; name those")
    return found


def _parsed(text: str) -> Network | None:
    try:
        return parse_network(text)
    except ValueError:
        return None


# --- maintenance ------------------------------------------------------------------------------------------------------


@click.group()
def maintenance() -> None:
    """Maintenance mode: forms are answered with a readable 503."""


@maintenance.command()
@click.option("--text", help="Message to the people who send forms")
@lasts
@with_context
def on(context: Context, text: str | None, lasts: timedelta | None) -> None:
    """Accept no forms until `nigredo maintenance off`, or for a time; returns once the running ingest obeys.

    Without a confirmation within ten seconds stderr says so, and the exit code is 1 if ingest answers.
    """
    changes, until = changes_of(context), until_of(lasts)
    wanted = {"MAINTENANCE_MODE": "true"} | ({} if text is None else {"MAINTENANCE_TEXT": text})
    after = put_settings(context, changes, wanted, until).get("MAINTENANCE_MODE")
    document = {"maintenance": True, "until": until and until.isoformat()}
    line = f"no forms are accepted{shown_until(until)}{afterwards_too(after, 'true')}"
    report_change(context, changes, document, line)


@maintenance.command()
@with_context
def off(context: Context) -> None:
    """Accept forms again."""
    changes, text = changes_of(context), Change(SETTING, "MAINTENANCE_TEXT", None)
    put_settings(context, changes, {"MAINTENANCE_MODE": "false"}, None, also=[text])
    report_change(context, changes, {"maintenance": False}, "forms are accepted")
