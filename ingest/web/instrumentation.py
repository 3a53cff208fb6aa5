"""What answered requests add to the metrics."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import falcon.asgi

from ingest.pages.html import SCRIPT_PATH
from nigredo.observability import metrics
from nigredo.observability.labels import MAINTENANCE, NONE
from nigredo.rate_limit.window import RATE_LIMITED

ROUTE_LABELS = {
    "/api/leads/{lead_id}": "/api/leads/{id}",
    "/api/leads/{lead_id}/trail": "/api/leads/{id}/trail",
    SCRIPT_PATH: "/static/form.js",
}
"""What metrics call the routes whose template is not what operators know."""

Alike = tuple[str, str, str, int, bool, str | None, str | None]
_answered: dict[Alike, list[float]] = {}
"""How long the answered requests of this turn of the event loop took, by what else there is to tell of them."""


def begin(request: falcon.asgi.Request) -> None:
    """Prepare what a request may note for its end."""
    request.context.maintenance = False
    request.context.source = request.context.outcome = None


def note_form(request: falcon.asgi.Request, source: str | None) -> None:
    """Note that the request came with a form that could be read, and from where."""
    request.context.source = source or NONE


def count(request: falcon.asgi.Request, function: str, status: int, took_s: float) -> None:
    """Count an answered request when the event loop has gone round, together with its likes of this turn."""
    if not _answered:
        asyncio.get_running_loop().call_soon(_tell)
    context = request.context
    # Without a template the request was refused before a route was looked for, or there is none.
    template = request.uri_template or request.path
    alike = (function, template, request.method, status, context.maintenance, context.source, context.outcome)
    _answered.setdefault(alike, []).append(took_s)


def _tell() -> None:
    told = list(_answered.items())
    _answered.clear()
    for alike, durations in told:
        _count(*alike, durations)


def _count(
    function: str,
    template: str,
    method: str,
    status: int,
    maintenance: bool,
    source: str | None,
    outcome: str | None,
    durations: Sequence[float],
) -> None:
    """Count requests. What is no route or method of ours has no label of its own: anybody can invent one."""
    many, route = len(durations), ROUTE_LABELS.get(template, template)
    told_as = MAINTENANCE if maintenance else str(status)
    metrics.API_REQUESTS.of(function, route, method, told_as).inc(many)
    metrics.API_LATENCY.of(route, method).observe_all(durations)
    if status >= 500 and not maintenance:
        metrics.API_ERRORS.of(route, told_as).inc(many)
    if status == 429:
        metrics.RATE_LIMIT_HITS.of().inc(many)
    if source is not None and (told_of := outcome or _outcome_of(status)) is not None:
        metrics.LEAD_SUBMISSIONS.of(source, told_of).inc(many)


def _outcome_of(status: int) -> str | None:
    """Return what became of a form that was not taken; None where its client made a mistake with it."""
    if status == 429:
        return RATE_LIMITED
    return "failed" if status >= 500 else None
