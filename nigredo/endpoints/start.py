"""Start offsets of an endpoint that began with the newest lead, as its control entry remembers them."""

from __future__ import annotations

from datetime import datetime

from schemas.events import ControlEntry

FIRST = ("since", "starts")
"""In the remembered entry: when an endpoint began that began with what came then, and at which offsets."""


def first_offsets(entry: ControlEntry) -> tuple[datetime, dict[int, int]] | None:
    """Return when an endpoint began and at which offsets, for one that began with what came then; else None.

    None too for one that an earlier release began, which did not remember it.
    """
    try:
        at = datetime.fromisoformat(entry.value["since"])
        places = [place.partition(":") for place in entry.value["starts"].split(",") if place]
        return at, {int(partition): int(offset) for partition, _, offset in places}
    except (KeyError, ValueError):
        return None
