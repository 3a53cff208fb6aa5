"""What every process does before it works: logging, settings, and schemas, with one way to say what is wrong."""

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
"""Exit code of a process whose settings cannot work."""


def run_process(component: str, serve: Callable[[Settings], None]) -> int:
    """Read the settings, set up logging, run `serve` until it returns; return the exit code.

    `WRONG_SETTINGS` for settings that cannot work, told in one line on stderr before there is a log; 1 for anything
    that a person or a restart must see to.
    """
    # Spooled submissions and cached schemas are this user's alone.
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
    """Return a codec that can write to these topics, waiting for Kafka or for their schemas to be pinned.

    Raises DependencyDown past the deadline.
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
