"""Runs one of our processes with a part of it made twice as slow: shows that the instrument sees it.

Arguments: what is slowed (`encoder`, `window` or `sink`) and the process. `make bench SLOW=window` does it to all.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any

from nigredo.cli import main as nigredo

TARGETS: Mapping[str, tuple[str, str, str]] = {
    "encoder": ("schemas.codec", "Codec", "encode"),
    "window": ("nigredo.window", "", "judge"),
    "sink": ("sinks.webhook.request", "", "headers_of"),
}
"""Pure functions, so that doing them twice is the same but for the time."""


def slow_down(what: str) -> None:
    """Make a part do its work twice. Call it before anything else imports the function by name."""
    module, owner, name = TARGETS[what]
    place: Any = importlib.import_module(module)
    if owner:
        place = getattr(place, owner)
    setattr(place, name, _twice(getattr(place, name)))


def _twice(function: Callable[..., Any]) -> Callable[..., Any]:
    def twice(*arguments: Any, **named: Any) -> Any:
        function(*arguments, **named)
        return function(*arguments, **named)

    return twice


if __name__ == "__main__":
    slow_down(sys.argv[1])
    sys.argv = ["nigredo", "run", sys.argv[2]]
    nigredo()
