"""Structured logs: one JSON object a line on stderr, with the field names the operations runbook queries.

`@timestamp`, `level` (upper case), `message` (constant text, so that lines can be counted by it), `function`, then
keys. Personal data is never a key and never in a message.
"""

from __future__ import annotations

import json
import logging
import sys
from typing import Any

import structlog
from structlog.typing import EventDict, WrappedLogger


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
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *render],
        )
    )
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)


def get_logger() -> structlog.typing.FilteringBoundLogger:
    """Return the process's logger; may be called at import, before logging is configured."""
    logger: structlog.typing.FilteringBoundLogger = structlog.get_logger()
    return logger
