"""Progress reports of a reference: JSON lines `[seconds, records]` on stdout, at most twenty a second."""

from __future__ import annotations

import json
import threading
import time

EVERY_S = 0.05


class Progress:
    """Counter of records that reports itself. Standard library only, because it runs in other environments too."""

    def __init__(self) -> None:
        self.count = 0
        # In a thread, so that reporting costs a reference nothing between two records and includes the last record.
        threading.Thread(target=self._report, daemon=True).start()

    def _report(self) -> None:
        reported = 0
        while True:
            time.sleep(EVERY_S)
            if (count := self.count) != reported:
                reported = count
                print(json.dumps([time.monotonic(), count]), flush=True)
