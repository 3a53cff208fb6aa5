"""`nigredo ratelimit`: client networks at the limit; reset their counts, change or simulate the limit."""

from __future__ import annotations

from datetime import timedelta

import click

from nigredo.cli.control import PART, change_settings, changes_of, lasts
from nigredo.cli.output import Context, with_context
from nigredo.cli.webhook_status import table_is_current
from nigredo.clock import utc_now
from nigredo.control.state import control_of
from nigredo.networks import Network, client_network, parse_network
from nigredo.operations.limit_commands import LimiterCommands
from nigredo.operations.limit_queries import busiest_networks
from nigredo.operations.limit_simulation import simulated
from nigredo.plural import counted
from schemas.topics import RATE_LIMITS

APPLY_DEADLINE_S = 20.0
SIMULATED_MAX = 10_000


class Clients(click.ParamType):
    """An IP address or network; an IPv4-mapped IPv6 address counts as the IPv4 address."""

    name = "address"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> Network:
        """Return the network; fails with the expected form."""
        try:
            return parse_network(str(value), strict=False)
        except ValueError:
            self.fail(f"{value!r} is no address and no network, such as 192.0.2.7 or 2001:db8::/64", param, ctx)


def _commands(context: Context) -> LimiterCommands:
    return LimiterCommands(context.settings(PART, role="nigredo_app"), context.actor)


def _one_client(network: Network) -> str | None:
    """Return the client network that all these addresses count for; None when they count for several."""
    if network.prefixlen < (32 if network.version == 4 else 64):
        return None
    return client_network(network.network_address)


@click.group()
def ratelimit() -> None:
    """Client networks at the limit: an IPv4 address, or the /64 of an IPv6 address."""


@ratelimit.command(name="list")
@click.option("--limit", type=click.IntRange(1, 10_000), default=20, show_default=True, help="How many")
@with_context
def list_(context: Context, limit: int) -> None:
    """Show the client networks with the most submissions in the last hour, refused ones included.

    The exit code is 0 only when the table is up to date with the log.
    """
    settings = context.settings(PART, role="nigredo_app")
    up_to_date = table_is_current(settings, [RATE_LIMITS])
    rows = busiest_networks(settings, limit)
    document = [
        {"ip_address": network, "submission_count": count, "window_start": start.isoformat()}
        for network, count, start in rows
    ]
    lines = [f"{network}  {count}  since {start:%Y-%m-%d %H:%M:%S} UTC" for network, count, start in rows]
    context.result(
        document, lines or f"no submission in the last hour{'' if up_to_date else ', as far as the table goes'}"
    )
    if not up_to_date:
        raise click.exceptions.Exit(1)


@ratelimit.command()
@click.argument("clients", nargs=-1, required=True, type=Clients(), metavar="ADDRESS…")
@click.option("--yes", is_flag=True, help="Do not ask before freeing all of a large network")
@with_context
def reset(context: Context, clients: tuple[Network, ...], yes: bool) -> None:
    """Free clients: reset their counts at every node.

    ADDRESS is any address or network. An IPv6 address frees its /64, because the limit counts by /64; of a larger
    network every client is freed that is counted at present.
    """
    single = {str(each): client for each in clients if (client := _one_client(each)) is not None}
    large = [each for each in clients if str(each) not in single]
    commands, networks = _commands(context), set(single.values())
    if large:
        networks |= set(commands.windows(lambda key: _lies_in(key, large)))
        context.confirm(f"Free {counted(len(networks), 'client network')}?", yes=yes)
    commands.wait_handled(commands.reset(sorted(networks)), deadline_s=APPLY_DEADLINE_S)
    lines = [f"{network} is free" for network in sorted(networks)]
    context.result({"freed": sorted(networks)}, lines or "no client there is counted", changed=True)


def _lies_in(key: str, networks: list[Network]) -> bool:
    try:
        client = parse_network(key)
    except ValueError:
        return False
    return any(client.version == network.version and client.network_address in network for network in networks)


@ratelimit.command(name="set-limit")
@click.argument("number", type=int, metavar="N")
@lasts
@with_context
def set_limit(context: Context, number: int, lasts: timedelta | None) -> None:
    """Allow N submissions an hour, from the next one on; the same as `nigredo config set RATE_LIMIT_PER_HOUR=N`."""
    change_settings(context, {"RATE_LIMIT_PER_HOUR": str(number)}, lasts)


@ratelimit.command()
@click.argument("client", type=Clients(), metavar="ADDRESS")
@click.argument("count", type=click.IntRange(1, SIMULATED_MAX), metavar="COUNT")
@with_context
def simulate(context: Context, client: Network, count: int) -> None:
    """Simulate COUNT more forms from ADDRESS now, and show each verdict. Nothing is sent and nothing changes.

    Computed by the limiter's own function from the window that it last wrote for that client.
    """
    network = _one_client(client)
    if network is None:
        raise click.UsageError(f"{client} is many clients; name one address, or the /64 of an IPv6 one")
    settings, now = context.settings(PART, role="nigredo_app"), utc_now()
    context.warn_of_own_settings()
    control = control_of(settings, changes_of(context).held())
    state = _commands(context).windows(lambda key: key == network).get(network)
    simulation = simulated(state, client.network_address, network, count, control, at=now)
    document = {
        "client_network": network,
        "limit": control.settings.rate_limit_per_hour,
        "counted": simulation.counted,
        "verdicts": simulation.verdicts,
        "next_accepted_at": simulation.next_at and simulation.next_at.isoformat(),
    }
    lines = [f"{network}: {simulation.counted} of {control.settings.rate_limit_per_hour} are counted; nothing is sent"]
    lines += [f"{number:>5}  {verdict}" for number, verdict in enumerate(simulation.verdicts, 1)]
    if simulation.next_at is None:
        lines.append("there is no time from which the next one would be accepted")
    else:
        ahead_s = round((simulation.next_at - now).total_seconds())
        when = "at once" if ahead_s <= 0 else f"at {simulation.next_at:%Y-%m-%d %H:%M:%S} UTC, in {ahead_s} s"
        lines.append(f"the next one would be accepted {when}")
    context.result(document, lines)
