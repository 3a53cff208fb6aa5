"""What one answered request adds to the metrics. On the path of every request: children are looked up, not made."""

from __future__ import annotations

import asyncio

import falcon.asgi
from prometheus_client import Counter

from ingest.page import SCRIPT_PATH
from nigredo import metrics
from nigredo.metric_labels import MAINTENANCE, NONE
from nigredo.window import RATE_LIMITED

ROUTE_LABELS = {
    "/api/leads/{lead_id}": "/api/leads/{id}",
    "/api/leads/{lead_id}/trail": "/api/leads/{id}/trail",
    SCRIPT_PATH: "/static/form.js",
}
"""What metrics call the routes whose template is not what operators know."""

_more: dict[Counter, int] = {}
"""What the counters are still to be told: a worker has one event loop."""


def begin(request: falcon.asgi.Request) -> None:
    """Prepare what a request may note for its end."""
    request.context.maintenance = False
    request.context.source = request.context.outcome = None


def note_form(request: falcon.asgi.Request, source: str | None) -> None:
    """Note that the request came with a form that could be read, and from where."""
    request.context.source = source or NONE


def count(request: falcon.asgi.Request, function: str, status: int, took_s: float) -> None:
    """Count an answered request. What is no route or method of ours has no label of its own: anybody can invent one."""
    # Without a template the request was refused before a route was looked for, or there is none.
    template = request.uri_template or request.path
    route, method, context = ROUTE_LABELS.get(template, template), request.method, request.context
    told_as = MAINTENANCE if context.maintenance else str(status)
    _count(metrics.API_REQUESTS.of(function, route, method, told_as))
    metrics.API_LATENCY.of(route, method).observe(took_s)
    if status >= 500 and not context.maintenance:
        metrics.API_ERRORS.of(route, told_as).inc()
    if status == 429:
        metrics.RATE_LIMIT_HITS.of().inc()
    if context.source is not None:
        # Of a form that was not taken its answer tells why.
        outcome = context.outcome or (RATE_LIMITED if status == 429 else "failed")
        _count(metrics.LEAD_SUBMISSIONS.of(context.source, outcome))


def _count(counter: Counter) -> None:
    """Count one more when the event loop has gone round, together with its others of this turn."""
    if not _more:
        asyncio.get_running_loop().call_soon(_tell)
    _more[counter] = _more.get(counter, 0) + 1


def _tell() -> None:
    told = list(_more.items())
    _more.clear()
    for counter, count in told:
        counter.inc(count)
