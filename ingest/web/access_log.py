"""Access log: one line a request, with the fields that operators query.

Written without the logging library's processors, and together with the other lines of the same event-loop iteration, so
that several lines need one system call. A worker that is killed loses the lines of its last iteration, some
milliseconds.
"""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from functools import lru_cache

from nigredo.observability.instrument import OTHER
from nigredo.observability.labels import METHODS
from nigredo.observability.logs import OUTPUT

LINES_AT_ONCE = 8
"""Lines that are written with one system call, some 3 KB. Up to 4 KB a pipe write is atomic; a larger write may be
split, so that another worker writes in the middle of a line."""


class AccessLog:
    """Writes access lines to stderr as `nigredo.observability.logs` writes all others. Belongs to one event loop."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._at = ""

    def add(
        self,
        *,
        function: str,
        request_id: str,
        ip_address: str,
        method: str,
        route: str,
        status_code: int,
        took_s: float,
        lead_id: str | None,
    ) -> None:
        """Add the line of an answered request; it is written within the present event-loop iteration.

        The level is always INFO: a failure has a line of its own with the reason, and operators count ERROR lines.
        """
        if not self._lines:
            # One timestamp for the iteration, which lasts some milliseconds at most.
            self._at = datetime.now(UTC).isoformat()[:-6]
            asyncio.get_running_loop().call_soon(self.write)
        # A client can invent methods.
        label = method if method in METHODS else OTHER
        lead = "null" if lead_id is None else f'"{lead_id}"'
        self._lines.append(
            f'{{"@timestamp": "{self._at}Z", {_shared_fields(function, label, route, status_code)}, '
            f'"request_id": "{request_id}", "ip_address": "{ip_address}", '
            f'"duration_ms": {took_s * 1000:.1f}, "lead_id": {lead}}}\n'
        )

    def write(self) -> None:
        """Write the lines that were added."""
        lines, self._lines = self._lines, []
        for start in range(0, len(lines), LINES_AT_ONCE):
            OUTPUT.write("".join(lines[start : start + LINES_AT_ONCE]))


@lru_cache(maxsize=1024)
def _shared_fields(function: str, method: str, route: str, status_code: int) -> str:
    """Return the fields that many requests share, as the inside of a JSON object."""
    fields = {
        "level": "INFO",
        "message": "request",
        "function": function,
        "method": method,
        "route": route,
        "status_code": status_code,
    }
    return json.dumps(fields, ensure_ascii=False)[1:-1]
