"""Structured logs: one JSON object per line on stderr, with the field names that the operations runbook queries.

`@timestamp`, `level` (upper case), `message` (constant text, so that lines can be counted by message), `function`, then
further keys. Personal data is neither in a key nor in a message.
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

REPEAT_AFTER_S = 10.0
"""Shortest time between two lines of a library with the same text."""
TEXTS_MAX = 1000
"""Texts of libraries that are cached to find repetitions."""

OUTPUT = LogOutput(stderr_descriptor(), dropped=lambda lines: metrics.LOG_LINES_DROPPED.of().inc(lines))
"""Output of all log lines of this process."""


def configure_logging(function: str) -> None:
    """Write the product's log lines and its libraries' warnings to stderr as JSON. Call once at start."""

    def name_fields(_: WrappedLogger, method: str, event: EventDict) -> EventDict:
        return {
            "@timestamp": event.pop("timestamp"),
            "level": event.pop("level").upper(),
            "message": event.pop("event"),
            "function": function,
            **event,
        }

    # One encoder for all lines, because `json.dumps` would create one for each.
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
    """Rate limit for the log lines of libraries: one line per text every `REPEAT_AFTER_S`.

    Some libraries write several lines a second while Kafka is unavailable. The next line of a text reports how many
    were suppressed. The product's own lines are not filtered.
    """

    def __init__(self, timer: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._timer = timer
        self._written: dict[tuple[str, str], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether a line is written."""
        now, text = self._timer(), (record.name, str(record.msg))
        at, suppressed = self._written.get(text, (-REPEAT_AFTER_S, 0))
        if now - at < REPEAT_AFTER_S:
            self._written[text] = (at, suppressed + 1)
            return False
        if len(self._written) >= TEXTS_MAX:
            self._written.clear()
        self._written[text] = (now, 0)
        if suppressed:
            record.msg, record.args = f"{record.getMessage()} (similar lines suppressed: {suppressed})", ()
        return True


def get_logger() -> structlog.typing.FilteringBoundLogger:
    """Return the process's logger; may be called at import time, before `configure_logging`."""
    logger: structlog.typing.FilteringBoundLogger = structlog.get_logger()
    return logger
