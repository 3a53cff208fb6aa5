"""Program: runs one of the product's processes with a part made twice as slow, to check that the bench shows it.

Arguments: the part (`encoder`, `window` or `sink`) and the process. `make bench SLOW=window` does so for every process.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nigredo.cli import nigredo

TARGETS: Mapping[str, Sequence[tuple[str, str, str]]] = {
    "encoder": [
        ("nigredo.avro.codec", "Codec", "encode"),
        ("nigredo.avro.encoded_submission", "", "encode_submission"),
    ],
    "window": [("nigredo.rate_limit.window", "", "judge")],
    "sink": [("sinks.webhook.transport.request", "", "headers_of")],
}
"""Functions by part: module, class or none, name. They are pure, so that calling them twice changes only the time."""


def slow_down(what: str) -> None:
    """Make a part do its work twice. Must be called before another module imports the function by name."""
    for module, owner, name in TARGETS[what]:
        place: Any = importlib.import_module(module)
        if owner:
            place = getattr(place, owner)
        setattr(place, name, _twice(getattr(place, name)))


def _twice(function: Callable[..., Any]) -> Callable[..., Any]:
    def twice(*arguments: Any, **named: Any) -> Any:
        function(*arguments, **named)
        return function(*arguments, **named)

    return twice


# A worker of ingest starts as a new process, which first runs this file under the second name.
if __name__ in ("__main__", "__mp_main__"):
    slow_down(sys.argv[1])
if __name__ == "__main__":
    sys.exit(nigredo(["run", sys.argv[2]], standalone_mode=False))
