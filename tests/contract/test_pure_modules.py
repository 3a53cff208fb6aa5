"""Modules that call themselves pure are the ones that the import contract keeps free of client libraries."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("schemas", "nigredo", "ingest", "processors", "sinks")


def claimed() -> set[str]:
    """Return the modules whose docstring says `Pure`."""
    paths = (path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in paths
        if re.search(r"\bPure\b", ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "")
    }


def test_every_module_that_calls_itself_pure_is_held_to_it_and_no_other() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    (pure,) = (contract for contract in contracts if contract["name"].startswith("Decisions are pure"))

    assert set(pure["source_modules"]) == claimed()
