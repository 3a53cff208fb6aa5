"""Counts in the texts of commands, health and errors: "1 record is", "2 records are"."""

from __future__ import annotations


def counted(count: int, one: str, many: str | None = None) -> str:
    """Return a count followed by its noun or clause, such as "2 leads" or "1 record is".

    one: the text after 1, such as "lead" or "record is". many: the text after other counts; None adds an s to `one`.
    """
    return f"{count} {one if count == 1 else many or f'{one}s'}"
