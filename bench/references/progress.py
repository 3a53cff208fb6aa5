"""How a reference tells how far it is: lines of JSON on stdout, at most one a twentieth of a second."""

from __future__ import annotations

import json
import time

EVERY_S = 0.05


class Progress:
    """Counts records. Needs nothing but the standard library: it runs in other environments too."""

    def __init__(self) -> None:
        self._count = 0
        self._told = 0.0

    def one_more(self) -> None:
        """Count a record, and tell now and then."""
        self._count += 1
        # The clock is asked every 50 records only: a reference must not be slow on our account.
        if self._count % 50 == 0 and (now := time.monotonic()) - self._told > EVERY_S:
            self._told = now
            print(json.dumps([now, self._count]), flush=True)
