"""Members of a group stay away while its offsets are set from outside: Kafka allows that only on an empty group.

`nigredo rewind` asks for it by an entry of kind `leave` in `nigredo.control`, named like the group. It always has an
end: whatever becomes of the command, the members come back.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from datetime import datetime

from nigredo.clock import Clock, utc_now
from nigredo.control import decode_entry, key_of
from nigredo.health import Health
from nigredo.settings import Settings
from nigredo.telemetry import get_logger
from nigredo.view import Row, TopicView
from schemas.codec import Codec
from schemas.registry import Registry
from schemas.topics import CONTROL

log = get_logger()

LEAVE = "leave"
KNOWN_WITHIN_S = 5.0
"""How long a start waits to hear whether it should stay away; without Kafka there is no group to join either."""
LOOK_EVERY_S = 0.2


class LeaveKeeper:
    """Keeps `until` true for a `TopicView` of `nigredo.control`: the time to which a group is asked to stay away."""

    def __init__(self, group: str, codec: Codec, clock: Clock = utc_now) -> None:
        self.until: datetime | None = None
        self._key = key_of(LEAVE, group)
        self._codec = codec
        self._clock = clock
        self._found: datetime | None = None
        self._loaded = False
        self._tell: Callable[[], None] | None = None

    def when_asked(self, tell: Callable[[], None]) -> None:
        """Call this once, from the view's thread, when the group is asked to leave, or is already."""
        self._tell = tell

    @property
    def asked(self) -> bool:
        """Whether the group is to stay away now."""
        until = self.until
        return until is not None and self._clock() < until

    def begin(self) -> None:
        """Start afresh; what is known stands meanwhile."""
        self._found, self._loaded = None, False

    def apply(self, rows: Sequence[Row]) -> None:
        """Take changes. Raises DependencyDown while a schema cannot be fetched."""
        for row in rows:
            if row.key == self._key:
                entry = None if row.value is None else decode_entry(self._codec, row.key, row.value)
                # Without an end it would keep the members away for good if whoever wrote it died.
                self._found = entry.expires_at if entry is not None else None
        if self._loaded:
            self._refresh()

    def loaded(self) -> None:
        """Make what came since `begin` hold."""
        self._loaded = True
        self._refresh()

    def _refresh(self) -> None:
        self.until = self._found
        if self.asked and self._tell is not None:
            tell, self._tell = self._tell, None
            tell()


class Leave:
    """What one process knows about being asked to leave its group, from `open` to `close`."""

    def __init__(self, settings: Settings, component: str) -> None:
        group = settings.function(component)
        codec = Codec(Registry(settings.schema_registry_url, settings.state_dir / "schemas"))
        self._keeper = LeaveKeeper(group, codec)
        self._view = TopicView(settings, component, CONTROL, self._keeper)
        self._ended = threading.Event()

    def open(self) -> None:
        """Begin to listen."""
        self._view.open()

    def close(self) -> None:
        """Listen no more."""
        self._view.close()

    @property
    def asked(self) -> bool:
        """Whether the group is to stay away now."""
        return self._keeper.asked

    def when_asked(self, tell: Callable[[], None]) -> None:
        """Call this once, from another thread, when the group is asked to leave."""
        self._keeper.when_asked(tell)

    def stay_away(self, health: Health) -> None:
        """Return when nothing asks to stay away any more: the entry is gone, or its time has passed. Blocks."""
        if not self._view.wait_loaded(KNOWN_WITHIN_S):
            log.warning("it is not known whether this group is to stay away", reason="nigredo.control was not read")
        told = False
        while self.asked:
            if not told:
                told = True
                log.info("the group was left on request", until=str(self._keeper.until))
                health.waiting("an offset reset: the group was left on request")
            time.sleep(LOOK_EVERY_S)
