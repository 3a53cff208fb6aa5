"""Structured logs: one JSON object a line on stderr, with the field names the operations runbook queries.

`@timestamp`, `level` (upper case), `message` (constant text, so that lines can be counted by it), `function`, then
keys. Personal data is never a key and never in a message.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from typing import Any, TextIO, cast

import structlog
from structlog.typing import EventDict, WrappedLogger

from nigredo.observability import metrics
from nigredo.observability.log_output import LogOutput, stderr_descriptor

SELDOM_S = 10.0
SELDOM_MAX = 1000
"""Texts of libraries that are remembered."""

OUTPUT = LogOutput(stderr_descriptor(), dropped=lambda lines: metrics.LOG_LINES_DROPPED.of().inc(lines))
"""Where all log lines of this process go."""


def configure_logging(function: str) -> None:
    """Send this process's own lines, and its libraries' warnings, to stderr as JSON. Call once at start."""

    def name_fields(_: WrappedLogger, method: str, event: EventDict) -> EventDict:
        return {
            "@timestamp": event.pop("timestamp"),
            "level": event.pop("level").upper(),
            "message": event.pop("event"),
            "function": function,
            **event,
        }

    # One encoder for all lines: `json.dumps` would make one for each.
    encode = json.JSONEncoder(default=str, ensure_ascii=False).encode
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    render: list[Any] = [
        structlog.processors.format_exc_info,
        name_fields,
        structlog.processors.JSONRenderer(serializer=lambda event, **_: encode(event)),
    ]
    structlog.configure(
        processors=[*shared, *render],
        logger_factory=structlog.WriteLoggerFactory(cast(TextIO, OUTPUT)),
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(OUTPUT)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *render],
        )
    )
    handler.addFilter(RateLimitedFilter())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)


class RateLimitedFilter(logging.Filter):
    """Lets each text of a library through once in a while: some write several a second while Kafka is away.

    Our own lines do not come this way. The next one that comes through says how many were left out.
    """

    def __init__(self, timer: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._timer = timer
        self._told: dict[tuple[str, str], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Say whether a line is written."""
        now, text = self._timer(), (record.name, str(record.msg))
        at, left_out = self._told.get(text, (-SELDOM_S, 0))
        if now - at < SELDOM_S:
            self._told[text] = (at, left_out + 1)
            return False
        if len(self._told) >= SELDOM_MAX:
            self._told.clear()
        self._told[text] = (now, 0)
        if left_out:
            record.msg, record.args = f"{record.getMessage()} ({left_out} more like it were left out)", ()
        return True


def get_logger() -> structlog.typing.FilteringBoundLogger:
    """Return the process's logger; may be called at import, before logging is configured."""
    logger: structlog.typing.FilteringBoundLogger = structlog.get_logger()
    return logger
