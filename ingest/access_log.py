"""The one line that every request leaves in the log, with the fields that operators query.

Without the logging library's chain, and written together with those of the same turn of the event loop: one call of
the system for some of them. A worker that is killed loses the lines of its last turn, some milliseconds.
"""

from __future__ import annotations

import asyncio
import json
import sys
from datetime import UTC, datetime

TOGETHER = 10
"""Lines that are written at once, some 3 KB: up to 4 KB a pipe takes as one piece. Of more it takes what it has room
for, and then another worker may write in the middle of a line."""

_encode = json.JSONEncoder(ensure_ascii=False).encode


class AccessLog:
    """Writes the lines to stderr, as `nigredo.telemetry` does all others. Belongs to the event loop it is used in."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def add(
        self,
        *,
        failed: bool,
        function: str,
        request_id: str,
        method: str,
        route: str,
        status_code: int,
        took_s: float,
        lead_id: str | None,
    ) -> None:
        """Write the line of an answered request, at the latest when the loop has gone round."""
        if not self._lines:
            asyncio.get_running_loop().call_soon(self.write)
        line = {
            "@timestamp": datetime.now(UTC).isoformat().replace("+00:00", "Z"),
            "level": "ERROR" if failed else "INFO",
            "message": "request",
            "function": function,
            "request_id": request_id,
            "method": method,
            "route": route,
            "status_code": status_code,
            "duration_ms": round(took_s * 1000, 1),
            "lead_id": lead_id,
        }
        self._lines.append(_encode(line) + "\n")

    def write(self) -> None:
        """Write what was added."""
        lines, self._lines = self._lines, []
        for start in range(0, len(lines), TOGETHER):
            sys.stderr.write("".join(lines[start : start + TOGETHER]))
            sys.stderr.flush()
