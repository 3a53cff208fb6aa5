"""Secret file of an endpoint, watched while the sender runs: a rewritten file is used from the next second on."""

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
    """Current signing keys of one file. An invalid file is logged once, and the previous keys stay in use."""

    def __init__(
        self, file: Path, clock: Callable[[], datetime] = utc_now, timer: Callable[[], float] = time.monotonic
    ) -> None:
        """Raises ConfigurationError when the file is not readable or holds no valid secret."""
        self._file = file
        self._clock = clock
        self._timer = timer
        self._last_stat = self._stat()
        self._secrets = read_secrets(file)
        self._checked_at = timer()
        self._keys = active(self._secrets, clock())

    def keys(self) -> tuple[bytes, ...]:
        """Return the active signing keys, newest first. Reads a changed file again, checking once a second."""
        if self._timer() - self._checked_at >= LOOK_EVERY_S:
            self._checked_at = self._timer()
            self._reload_if_changed()
            self._keys = active(self._secrets, self._clock())
        return self._keys

    def _reload_if_changed(self) -> None:
        if (current := self._stat()) == self._last_stat:
            return
        self._last_stat = current
        try:
            self._secrets = read_secrets(self._file)
            log.info("webhook secrets reloaded", secrets=len(self._secrets))
        except ConfigurationError as error:
            log.error("webhook secrets not reloaded, previous secrets in use", error=str(error))

    def _stat(self) -> tuple[int, int, int] | None:
        try:
            status = self._file.stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_size, status.st_ino
