"""docs/LOGS.md explains every message that a process logs at level WARNING or above, and no other."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("nigredo", "ingest", "processors", "sinks", "schemas")
LEVELS = ("warning", "error", "critical", "exception")
PAGE = ROOT / "docs" / "LOGS.md"


def logged() -> set[tuple[str, str]]:
    """Return level and message of every call of `log` at these levels; a message that is no constant, as code."""
    found = set[tuple[str, str]]()
    for path in (path for package in PACKAGES for path in (ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case ast.Call(ast.Attribute(ast.Name("log"), level), [message, *_]) if level in LEVELS:
                    constant = isinstance(message, ast.Constant)
                    found.add((level, str(message.value) if constant else ast.unparse(message)))
    return found


def test_every_message_of_level_warning_and_above_is_explained() -> None:
    rows = re.findall(r"^\| (\w+) \| `([^`]+)` \| [^|]+ \| [^|]+ \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)

    assert sorted((level, message) for level, message in rows) == sorted(logged())
