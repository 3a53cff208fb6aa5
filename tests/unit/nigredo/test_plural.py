"""Counts in texts for operators: singular after 1, plural after every other count."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from nigredo.cli.stack import status_lines
from nigredo.plural import counted

ROOT = Path(__file__).parents[3]
NOUNS = (
    "attempts addresses clients deliveries endpoints ids keys leads networks offsets partitions records references "
    "schemas submissions topics windows workers"
)


@pytest.mark.parametrize(
    ("count", "expected"), [(0, "0 leads"), (1, "1 lead"), (2, "2 leads"), (1_000_000, "1000000 leads")]
)
def test_a_noun_follows_its_count(count: int, expected: str) -> None:
    assert counted(count, "lead") == expected


def test_a_verb_follows_the_count_too() -> None:
    assert counted(1, "record is", "records are") == "1 record is"
    assert counted(2, "record is", "records are") == "2 records are"


def test_status_says_that_one_record_is_parked() -> None:
    counts = [{"topic": "nigredo.leads", "reason": "undecodable", "count": 1}]

    assert status_lines(counts) == [
        "1 record of nigredo.leads is parked (undecodable): see `nigredo dead-letters list`"
    ]


def test_no_text_of_the_product_puts_a_plural_behind_a_count_of_its_own() -> None:
    # Leaves out constants, whose names are in capitals, and names of topics.
    plural = re.compile(rf"\{{[^{{}}\"A-Z]*\}} (?:[a-z]+ )?(?:{NOUNS.replace(' ', '|')})\b")
    sources = [file for part in ("nigredo", "ingest", "processors", "sinks") for file in (ROOT / part).rglob("*.py")]

    found = {
        f"{file.relative_to(ROOT)}: {text}"
        for file in sources
        for line in file.read_text().splitlines()
        for text in plural.findall(line)
    }

    assert found == set()
