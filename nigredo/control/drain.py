"""Members of a group stay away while its offsets are set from outside: Kafka allows that only on an empty group.

`nigredo rewind` asks for it by an entry of kind `leave` in `nigredo.control`, named like the group. It always has an
end: whatever becomes of the command, the members come back.
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

KNOWN_WITHIN_S = 5.0
"""How long a start waits to hear whether it should stay away; without Kafka there is no group to join either."""
LOOK_EVERY_S = 0.2


class _Keeper(ControlView):
    """A `ControlKeeper` that tells, once, when a group is asked to leave."""

    def __init__(self, settings: Settings, codec: Codec, group: str) -> None:
        super().__init__(settings, codec)
        self.tell: Callable[[], None] | None = None
        self._group = group

    @property
    def asked(self) -> bool:
        return self._group in self.current.leaving

    def apply(self, rows: Sequence[Row]) -> None:
        super().apply(rows)
        if self.asked and self.tell is not None:
            tell, self.tell = self.tell, None
            tell()


class GroupDrain:
    """What one process knows about being asked to leave its group, from `open` to `close`."""

    def __init__(self, settings: Settings, component: str) -> None:
        codec = Codec(PinnedSchemas(settings))
        self._keeper = _Keeper(settings, codec, settings.function(component))
        self._view = MaterializedView(settings, component, CONTROL, self._keeper)

    def open(self) -> None:
        """Begin to listen."""
        self._view.open()

    def close(self) -> None:
        """Listen no more."""
        self._view.close()

    def when_asked(self, tell: Callable[[], None]) -> None:
        """Call this once, from another thread, when the group is asked to leave, or is already."""
        self._keeper.tell = tell

    def stay_away(self, health: Health) -> None:
        """Return when nothing asks to stay away any more: the entry is gone, or its time has passed. Blocks."""
        if not self._view.wait_loaded(KNOWN_WITHIN_S):
            log.warning("it is not known whether this group is to stay away", reason="nigredo.control was not read")
        if self._keeper.asked:
            log.info("the group is left on request")
        while self._keeper.asked:
            # Again and again: a watchdog takes one that says why it waits for alive.
            health.waiting("an offset reset: the group was left on request")
            time.sleep(LOOK_EVERY_S)
