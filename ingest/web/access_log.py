"""The one line that every request leaves in the log, with the fields that operators query.

Without the logging library's chain, and written together with those of the same turn of the event loop: one call of
the system for some of them. A worker that is killed loses the lines of its last turn, some milliseconds.
"""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from functools import lru_cache

from nigredo.observability.instrument import OTHER
from nigredo.observability.labels import METHODS
from nigredo.observability.logs import OUTPUT

TOGETHER = 8
"""Lines that are written at once, some 3 KB: up to 4 KB a pipe takes as one piece. Of more it takes what it has room
for, and then another worker may write in the middle of a line."""


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
        """Write the line of an answered request, at the latest when the loop has gone round.

        Never of level ERROR: what went wrong has a line of its own that tells what, and errors are counted by lines.
        """
        if not self._lines:
            # One time for all of this turn: it lasts some milliseconds at most.
            self._at = datetime.now(UTC).isoformat()[:-6]
            asyncio.get_running_loop().call_soon(self.write)
        # Anybody can invent methods.
        told_as = method if method in METHODS else OTHER
        lead = "null" if lead_id is None else f'"{lead_id}"'
        self._lines.append(
            f'{{"@timestamp": "{self._at}Z", {_alike(function, told_as, route, status_code)}, '
            f'"request_id": "{request_id}", "ip_address": "{ip_address}", '
            f'"duration_ms": {took_s * 1000:.1f}, "lead_id": {lead}}}\n'
        )

    def write(self) -> None:
        """Write what was added."""
        lines, self._lines = self._lines, []
        for start in range(0, len(lines), TOGETHER):
            OUTPUT.write("".join(lines[start : start + TOGETHER]))


@lru_cache(maxsize=1024)
def _alike(function: str, method: str, route: str, status_code: int) -> str:
    """Return what the lines of many requests have in common, as the inside of a JSON object."""
    fields = {
        "level": "INFO",
        "message": "request",
        "function": function,
        "method": method,
        "route": route,
        "status_code": status_code,
    }
    return json.dumps(fields, ensure_ascii=False)[1:-1]
