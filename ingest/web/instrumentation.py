"""Metrics of answered requests, counted once an event-loop iteration."""

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
"""Metric labels of routes whose template differs from the path in the documentation."""

Labels = tuple[str, str, str, int, bool, str | None, str | None]
_answered: dict[Labels, list[float]] = {}
"""Durations in seconds of the requests answered in this event-loop iteration, by the other arguments of `_count`."""


def begin(request: falcon.asgi.Request) -> None:
    """Set the defaults of the context fields that a request may fill in before `count`."""
    request.context.maintenance = False
    request.context.source = request.context.outcome = None


def note_form(request: falcon.asgi.Request, source: str | None) -> None:
    """Note that the request held a readable form, and the form's source."""
    request.context.source = source or NONE


def count(request: falcon.asgi.Request, function: str, status: int, took_s: float) -> None:
    """Count an answered request at the end of the event-loop iteration, together with equal ones."""
    if not _answered:
        asyncio.get_running_loop().call_soon(_flush)
    context = request.context
    # No template: the request was refused before routing, or no route matches.
    template = request.uri_template or request.path
    labels = (function, template, request.method, status, context.maintenance, context.source, context.outcome)
    _answered.setdefault(labels, []).append(took_s)


def _flush() -> None:
    answered = list(_answered.items())
    _answered.clear()
    for labels, durations in answered:
        _count(*labels, durations)


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
    """Count requests. Unknown routes and methods get no label of their own, because a client can invent any."""
    number, route = len(durations), ROUTE_LABELS.get(template, template)
    status_label = MAINTENANCE if maintenance else str(status)
    metrics.API_REQUESTS.of(function, route, method, status_label).inc(number)
    metrics.API_LATENCY.of(route, method).observe_all(durations)
    if status >= 500 and not maintenance:
        metrics.API_ERRORS.of(route, status_label).inc(number)
    if status == 429:
        metrics.RATE_LIMIT_HITS.of().inc(number)
    if source is not None and (counted_as := outcome or _outcome_of(status)) is not None:
        metrics.LEAD_SUBMISSIONS.of(source, counted_as).inc(number)


def _outcome_of(status: int) -> str | None:
    """Return the outcome of a form that was not accepted; None where the client's mistake is the reason."""
    if status == 429:
        return RATE_LIMITED
    return "failed" if status >= 500 else None
