"""Label values of the metrics, and the children that each process exposes from its start."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from nigredo.components import CREATE_LEAD, INGEST, PERSISTER
from nigredo.observability.instrument import Child
from nigredo.settings import Settings

NONE = "none"
"""Label value for a form without a source."""
MAINTENANCE = "maintenance"
"""Status label of a 503 in maintenance mode, which is no error and so must not count as a 503."""
ENDPOINTS_MAX = 100
PARTITIONS_MAX = 1000

CREATE, LIST, GET = CREATE_LEAD, "list-leads", "get-lead"
ROUTES: Mapping[str, str] = {
    "/api/leads": "GET POST",
    "/api/leads/{id}": "GET",
    "/api/leads/{id}/trail": "GET",
    "/": "GET",
    "/thanks": "GET",
    "/openapi.json": "GET",
    "/static/form.js": "GET",
}
"""Ingest's routes as labels, with the methods that are counted from the start. Health probes are not counted."""
METHODS = ("GET", "POST", "HEAD", "OPTIONS", "PUT", "PATCH", "DELETE")
STATUSES = (
    *("200", "202", "303", "304", "400", "401", "403", "404", "405", "408", "409", "413", "415", "422", "429"),
    *("500", "503", MAINTENANCE),
)
POOLS: Mapping[str, str] = {INGEST: CREATE, PERSISTER: PERSISTER}
"""Component whose name a process's connections to PostgreSQL carry, by process."""
FIRST_STATUSES: Mapping[tuple[str, str], Sequence[str]] = {
    ("/api/leads", "POST"): ("202", "303", "403", "422", "429", "500", "503", MAINTENANCE),
    ("/api/leads", "GET"): ("200", "401", "500", "503"),
    ("/api/leads/{id}", "GET"): ("200", "401", "404", "500", "503"),
    ("/api/leads/{id}/trail", "GET"): ("200", "401", "404", "500", "503"),
}
SERVER_ERRORS = ("500", "503")

LATENCY_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 0.75, 1.0, 2.0, 3.0, 5.0, 10.0)
"""Bucket edges in seconds; alarms and targets use the edges 0.1, 0.5 and 1."""
ATTEMPT_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
END_TO_END_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 3600.0, 86_400.0)
BATCH_RECORDS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 4000)


def functions(*components: str) -> Callable[[Settings], Sequence[str]]:
    """Return a function from the settings to the full names of these components."""
    return lambda settings: [settings.function(component) for component in components]


def function_of(route: str, method: str) -> str:
    """Return the component that answers a route, one of the three functions in the operations runbook."""
    if method == "POST":
        return CREATE
    return GET if route.startswith("/api/leads/") else LIST


def first_requests(_: str, settings: Settings) -> Iterable[Child]:
    """Return the children that error ratios need from the start, because without a 5xx series a ratio has no value."""
    for route, methods in ROUTES.items():
        for method in methods.split():
            for status in FIRST_STATUSES.get((route, method), ("200", "500")):
                yield settings.function(function_of(route, method)), route, method, status


def first_latencies(_: str, __: Settings) -> Iterable[Child]:
    """Return the children of every route and method."""
    return ((route, method) for route, methods in ROUTES.items() for method in methods.split())


def first_of(**processes: Sequence[str]) -> Callable[[str, Settings], Iterable[Child]]:
    """Return a function from a process to its first values of a metric's only label. Hyphens become underscores."""
    return lambda process, _: ((value,) for value in processes.get(process.replace("-", "_"), ()))


def first_db_errors(process: str, settings: Settings) -> Iterable[Child]:
    """Return the child of the component that names a process's connections."""
    return [(settings.function(POOLS[process]),)]


def endpoints(_: Settings) -> Sequence[str]:
    """Return the endpoints known at the start; `metrics.know_endpoint` adds others."""
    return ("fibonacci",)
