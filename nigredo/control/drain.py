"""Draining of a consumer group: all members leave while its offsets are reset, because Kafka requires an empty group.

`nigredo rewind` requests this by an entry of kind `leave` in `nigredo.control`, named like the group. The entry always
expires, so that the members come back even if the command dies.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from nigredo.avro.codec import Codec
from nigredo.control.state import ControlView
from nigredo.kafka.materialized_view import MaterializedView, Row
from nigredo.kafka.pinned_schemas import PinnedSchemas
from nigredo.observability.health import Health
from nigredo.observability.logs import get_logger
from nigredo.settings import Settings
from schemas.topics import CONTROL

log = get_logger()

LOAD_WITHIN_S = 5.0
"""Longest wait of a start for the control topic; without Kafka there is no group to join either."""
POLL_EVERY_S = 0.2


class _LeaveWatcher(ControlView):
    """Control view that calls `callback` once when the group is asked to leave."""

    def __init__(self, settings: Settings, codec: Codec, group: str) -> None:
        super().__init__(settings, codec)
        self.callback: Callable[[], None] | None = None
        self._group = group

    @property
    def asked(self) -> bool:
        return self._group in self.current.leaving

    def apply(self, rows: Sequence[Row]) -> None:
        super().apply(rows)
        if self.asked and self.callback is not None:
            callback, self.callback = self.callback, None
            callback()


class GroupDrain:
    """Leave requests for the consumer group of one process, followed from `open` to `close`."""

    def __init__(self, settings: Settings, component: str) -> None:
        codec = Codec(PinnedSchemas(settings))
        self._watcher = _LeaveWatcher(settings, codec, settings.function(component))
        self._view = MaterializedView(settings, component, CONTROL, self._watcher)

    def open(self) -> None:
        """Start reading the control topic."""
        self._view.open()

    def close(self) -> None:
        """Stop reading the control topic."""
        self._view.close()

    def when_asked(self, callback: Callable[[], None]) -> None:
        """Call `callback` once, in another thread, when the group is asked to leave or already has been."""
        self._watcher.callback = callback

    def stay_away(self, health: Health) -> None:
        """Block until no leave request for the group is in effect: the entry is removed or expired."""
        if not self._view.wait_loaded(LOAD_WITHIN_S):
            log.warning("leave requests not loaded, joining the group", reason="nigredo.control was not read")
        if self._watcher.asked:
            log.info("consumer group left on request")
        while self._watcher.asked:
            # Repeated, because the watchdog counts each reported reason as a sign of life.
            health.waiting("the end of an offset reset: the consumer group was left on request")
            time.sleep(POLL_EVERY_S)
