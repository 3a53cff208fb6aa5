"""`nigredo webhook`: deliveries to the receivers; `pause` and `resume`."""

from __future__ import annotations

import time
from datetime import timedelta

import click

from nigredo.cli.control import afterwards_too, changes_of, lasts, put_settings, shown_until, until_of
from nigredo.cli.output import Context, complain, with_context
from nigredo.cli.webhook_secret import rotate_secret
from nigredo.components import WEBHOOK_SENDER
from nigredo.endpoints.endpoint import examine_endpoints
from nigredo.operations.endpoint_status import ask_sender
from nigredo.settings import Settings
from nigredo.stack.embedded import sender_ports

OBEYED_WITHIN_S = 15.0
LOOK_EVERY_S = 0.1


@click.group()
def webhook() -> None:
    """Deliveries to the receivers."""


webhook.add_command(rotate_secret)


@webhook.command()
@lasts
@with_context
def pause(context: Context, lasts: timedelta | None) -> None:
    """Send nothing to any receiver until `nigredo webhook resume`; leads are accepted and stored meanwhile.

    With --for, an existing pause without an end goes on afterwards.
    """
    until = until_of(lasts)
    after = put_settings(context, changes_of(context), {"WEBHOOK_ENABLED": "false"}, until).get("WEBHOOK_ENABLED")
    text = f"no webhooks are sent{shown_until(until)}{afterwards_too(after, 'false')}; leads wait in the log"
    context.result({"webhook_enabled": False, "until": until and until.isoformat()}, text, changed=True)
    _end_unless_obeyed(context, paused=True)


@webhook.command()
@with_context
def resume(context: Context) -> None:
    """Send again, waiting leads first; also when the environment says WEBHOOK_ENABLED=false.

    The exit code is 0 only when every sender of the stack reports that it sends.
    """
    put_settings(context, changes_of(context), {"WEBHOOK_ENABLED": "true"}, None)
    context.result({"webhook_enabled": True, "until": None}, "the pause is over", changed=True)
    _end_unless_obeyed(context, paused=False)


def _end_unless_obeyed(context: Context, *, paused: bool) -> None:
    """Ask the senders of the stack until all obey; end with exit code 1 when one does not within `OBEYED_WITHIN_S`.

    A sender that does not run sends nothing, which satisfies a pause but not a resumption.
    """
    settings = context.settings(WEBHOOK_SENDER, role="nigredo_app")
    deadline, problems = time.monotonic() + OBEYED_WITHIN_S, []
    for endpoint in examine_endpoints(settings)[0].values():
        listener = listener_of(context, settings, endpoint.name)
        if not endpoint.enabled:
            if not paused:
                problems.append(f"{endpoint.name} is not enabled in WEBHOOK_ENDPOINTS_FILE, so nothing is sent to it")
            continue
        if listener is None:
            complain(f"not confirmed by the sender of {endpoint.name}: its health address is not known here")
            continue
        while True:
            sender = ask_sender(listener, endpoint.name)
            if sender.paused is paused or (paused and not sender.ready and sender.paused is None):
                break
            if time.monotonic() > deadline:
                reason = sender.waiting_for or ("it still sends" if paused else "it does not report that it sends")
                problems.append(f"the sender of {endpoint.name} does not obey yet: {reason}")
                break
            time.sleep(LOOK_EVERY_S)
    for problem in problems:
        complain(problem)
    if problems:
        raise click.exceptions.Exit(1)


def listener_of(context: Context, settings: Settings, endpoint: str) -> str | None:
    """Return the health address of an endpoint's sender; None when it is not known here."""
    home = context.target.home
    port = settings.health_port if home is None else sender_ports(home, examine_endpoints(settings)[0])[endpoint]
    host = "127.0.0.1" if settings.health_host in ("0.0.0.0", "::") else settings.health_host  # noqa: S104 - read, not bound
    return f"http://{host}:{port}" if port else None
