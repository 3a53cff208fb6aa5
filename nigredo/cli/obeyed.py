"""Confirmation that the running ingest has applied a change to `nigredo.control`, from its health."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import click
import httpx

from nigredo.cli.output import Context, complain
from nigredo.control.admin import ControlAdmin

OBEYED_WITHIN_S = 10.0
LOOK_EVERY_S = 0.1
ASK_TIMEOUT_S = 2.0
LATE = "the change is in the log, but ingest does not obey it yet"


class NotRunning(Exception):
    """No process listens at ingest's address; one that starts there reads all changes before it accepts a form."""


@dataclass(frozen=True, slots=True)
class Obeyed:
    """Result of asking ingest. why: reason for a missing confirmation; None when every worker obeys."""

    why: str | None = None
    late: bool = False
    """Whether a worker answers but has not applied the change."""


def until_obeyed(
    url: str,
    written: Mapping[int, int],
    ask: Callable[[str], Mapping[str, Any] | None] | None = None,
    *,
    within_s: float = OBEYED_WITHIN_S,
) -> Obeyed:
    """Ask ingest until each of its workers has applied these records, for at most `within_s`.

    written: the last offset of the change in each partition. ask: returns the health document, None without an answer
    in time, and raises NotRunning. Each request opens a new connection, so that it may reach another worker.
    """
    ask, deadline, obeys = ask or _health_of, time.monotonic() + within_s, dict[str, bool]()
    while True:
        try:
            answer = ask(url)
        except NotRunning:
            return Obeyed(f"not confirmed by ingest, which does not run at {url}")
        reason = None if answer is None else answer.get("waiting_for")
        if answer is not None:
            control = answer.get("control")
            if not isinstance(control, dict):
                return Obeyed(f"not confirmed by ingest: the release that runs at {url} does not tell")
            applied = control["applied"]
            obeys[control["worker"]] = all(applied.get(str(part), -1) >= last for part, last in written.items())
            if all(obeys.values()) and len(obeys) >= control["workers"]:
                return Obeyed()
        if time.monotonic() > deadline:
            if not obeys:
                return Obeyed(f"not confirmed by ingest, which does not answer at {url}")
            if all(obeys.values()):
                # The kernel chooses the worker of a connection, and may not choose each in so short a time.
                return Obeyed(f"confirmed by {len(obeys)} of the workers of ingest at {url}; no other one answered")
            return Obeyed(LATE + (f": it waits for {reason}" if reason else ""), late=True)
        time.sleep(LOOK_EVERY_S)


def report_change(context: Context, changes: ControlAdmin, document: dict[str, Any], lines: str | list[str]) -> None:
    """Print the result of a change once ingest obeys, or with a line on stderr that this is not confirmed.

    Ends with exit code 1 when ingest answers but does not obey in time.
    """
    found = _confirmation(context, changes)
    context.result(document | {"confirmed": found.why is None}, lines, changed=True)
    _end_unless(found)


def end_unless_obeyed(context: Context, changes: ControlAdmin) -> None:
    """Wait until ingest obeys, after a result that must be printed first.

    Without a confirmation prints the reason on stderr; ends with exit code 1 when ingest answers but does not obey.
    """
    _end_unless(_confirmation(context, changes))


def _confirmation(context: Context, changes: ControlAdmin) -> Obeyed:
    home, url = context.target.home, context.target.environment.get("NIGREDO_URL")
    if home is not None:
        url = home.url("ingest")
    if not changes.written:
        return Obeyed()
    if url is None:
        return Obeyed("not confirmed by ingest, whose address is not known here: NIGREDO_URL names it")
    return until_obeyed(url.rstrip("/"), changes.written)


def _end_unless(found: Obeyed) -> None:
    if found.why is not None:
        complain(found.why)
    if found.late:
        raise click.exceptions.Exit(1)


def _health_of(url: str) -> Mapping[str, Any] | None:
    try:
        answer: Any = httpx.get(f"{url}/health", timeout=ASK_TIMEOUT_S, trust_env=False).json()
    except httpx.ConnectError as error:
        raise NotRunning from error
    except (httpx.HTTPError, httpx.InvalidURL, ValueError):
        return None
    return answer if isinstance(answer, dict) else None
