"""Start-up of every process: settings, logging, metrics and schemas, with one way to report a failed start."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Sequence

from nigredo.avro.codec import Codec
from nigredo.avro.registry import SchemaUnknown
from nigredo.backoff import Backoff
from nigredo.errors import ConfigurationError, DependencyDown, NigredoError
from nigredo.kafka.pinned_schemas import PinnedSchemas
from nigredo.observability import metrics
from nigredo.observability.logs import OUTPUT, configure_logging, get_logger
from nigredo.settings import Settings

log = get_logger()

WRONG_SETTINGS = 2
"""Exit code of a process with invalid settings."""


def run_process(component: str, serve: Callable[[Settings], None]) -> int:
    """Read the settings, set up logging and metrics, run `serve` until it returns; return the exit code.

    0 after a normal end; `WRONG_SETTINGS` for invalid settings, reported in one line on stderr because logging is not
    set up yet; 1 for an error that needs an operator or a restart.
    """
    # Only this user may read spooled submissions and cached schemas.
    os.umask(0o077)
    try:
        settings = Settings.from_environment(os.environ)
    except ConfigurationError as error:
        OUTPUT.write(f"nigredo: {error}\n")
        return WRONG_SETTINGS
    configure_logging(settings.function(component))
    metrics.start(component, settings)
    try:
        serve(settings)
    except NigredoError as error:
        log.error("stopped", error=str(error))
        return 1
    return 0


async def ready_codec(settings: Settings, topics: Sequence[str], *, deadline_s: float = 60.0) -> Codec:
    """Return a codec that can write to these topics; wait until Kafka answers and their schemas are pinned.

    Raises DependencyDown when the deadline has passed.
    """
    codec = Codec(PinnedSchemas(settings))
    backoff, deadline = Backoff(longest_s=0.5), time.monotonic() + deadline_s
    while True:
        try:
            await asyncio.to_thread(codec.prepare, topics)
            return codec
        except (DependencyDown, SchemaUnknown) as error:
            wait_s = backoff.next_wait_s()
            if time.monotonic() + wait_s > deadline:
                raise DependencyDown(str(error)) from error
            await asyncio.sleep(wait_s)
