"""Page of all settings, `docs/SETTINGS.md`, rendered from `nigredo/settings.py`; run as a module it writes the page."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import fields
from itertools import pairwise
from pathlib import Path

import nigredo.settings
from nigredo.settings import Settings

DOCUMENT = Path(__file__).parents[2] / "docs" / "SETTINGS.md"
GROUPS: Mapping[str, tuple[str, ...]] = {
    "Every process": ("NIGREDO_", "HEALTH_", "WATCHDOG_", "DEAD_LETTERS_", "METRIC_"),
    "Kafka and the schema registry": ("KAFKA_", "EMBEDDED_", "TOPIC_", "SCHEMA_"),
    "PostgreSQL": ("DATABASE_", "DB_"),
    "Ingest and its forms": (
        "INGEST_", "BODY_", "CORS_", "FORM_", "IDEMPOTENCY_", "MAINTENANCE_", "REDIRECT_", "TRUSTED_"
    ),
    "The rate limit": ("RATE_LIMIT_", "EDGE_"),
    "Webhooks": ("WEBHOOK_", "FIBONACCI_"),
}  # fmt: skip
"""Headings of the page, and the beginnings of the names below each."""
HEAD = """# Settings

Every process reads its settings from environment variables, once, at its start; a missing or empty one has its default.
A wrong value stops the start with one line for each problem. *live*: `nigredo config set` changes the value in every
process while it runs, and the environment gives the value until then. `nigredo config get` shows what holds.

This page is made from `nigredo/settings.py` by `make format`.
"""


def page() -> str:
    """Return the page. Raises KeyError for a setting without a description or a heading."""
    described = descriptions()
    tables: dict[str, list[str]] = {heading: [] for heading in GROUPS}
    for setting in fields(Settings):
        name, default = setting.metadata["name"], setting.metadata["default"]
        takes = " ".join(str(setting.metadata["parse"].__doc__).split()) + (
            ", live" if setting.metadata["live"] else ""
        )
        shown = f"`{default}`" if default else "none"
        tables[heading_of(name)].append(f"| `{name}` | {shown} | {takes} | {described[setting.name]} |")
    columns = ["| name | default | value | meaning |", "|---|---|---|---|"]
    parts = ["\n".join([f"## {heading}", "", *columns, *rows]) for heading, rows in tables.items()]
    return "\n".join([HEAD, "\n\n".join(parts), ""])


def heading_of(name: str) -> str:
    """Return the heading of a setting. Raises KeyError."""
    for heading, beginnings in GROUPS.items():
        if name.startswith(beginnings):
            return heading
    raise KeyError(name)


def descriptions() -> Mapping[str, str]:
    """Return the docstring of each attribute of the settings, on one line."""
    tree = ast.parse(Path(nigredo.settings.__file__).read_text(encoding="utf-8"))
    (body,) = (node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Settings")
    found = {}
    for declared, text in pairwise(body):
        if (
            isinstance(declared, ast.AnnAssign)
            and isinstance(declared.target, ast.Name)
            and isinstance(text, ast.Expr)
            and isinstance(text.value, ast.Constant)
        ):
            found[declared.target.id] = " ".join(str(text.value.value).split())
    return found


if __name__ == "__main__":
    DOCUMENT.write_text(page(), encoding="utf-8")
