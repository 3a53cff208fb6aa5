"""The secrets of an endpoint while it runs: a file that was rewritten holds from the next second on."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from nigredo.clock import utc_now
from nigredo.endpoints.secrets import active, read_secrets
from nigredo.errors import ConfigurationError
from nigredo.observability.logs import get_logger

log = get_logger()

LOOK_EVERY_S = 1.0


class SecretFile:
    """Keeps the keys of one file. A file that is wrong is told once and changes nothing."""

    def __init__(
        self, file: Path, clock: Callable[[], datetime] = utc_now, timer: Callable[[], float] = time.monotonic
    ) -> None:
        """Raises ConfigurationError when there is nothing to sign with."""
        self._file = file
        self._clock = clock
        self._timer = timer
        self._mark = self._marked()
        self._secrets = read_secrets(file)
        self._looked_at = timer()
        self._keys = active(self._secrets, clock())

    def keys(self) -> tuple[bytes, ...]:
        """Return what to sign with now, newest first."""
        if self._timer() - self._looked_at >= LOOK_EVERY_S:
            self._looked_at = self._timer()
            self._look()
            self._keys = active(self._secrets, self._clock())
        return self._keys

    def _look(self) -> None:
        if (mark := self._marked()) == self._mark:
            return
        self._mark = mark
        try:
            self._secrets = read_secrets(self._file)
            log.info("the webhook secrets were read again", secrets=len(self._secrets))
        except ConfigurationError as error:
            log.error("the webhook secrets stay as they were", error=str(error))

    def _marked(self) -> tuple[int, int, int] | None:
        try:
            status = self._file.stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_size, status.st_ino
