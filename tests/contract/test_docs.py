"""What the documents name exists: files, commands, make targets, settings. Run by `make check` too."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest

from bench import long, profiled
from bench.report import NOT_MEASURED, Document, between, costs, headlines, load, quoted
from nigredo.cli import COMMANDS
from nigredo.observability.metrics import CATALOGUE
from nigredo.settings import Settings
from schemas import events
from schemas.topics import RETRIES_PREFIX, SCHEMA_PINS, TOPICS
from tests.chaos import report as chaos_report
from tests.contract import settings_document

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
CODE = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\]\(([^)#\s]+)")
ROOTS = ("ingest", "processors", "sinks", "schemas", "nigredo", "tests", "docs", "deploy", "bench")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_local_link_leads_somewhere(document: Path) -> None:
    for target in LINK.findall(document.read_text()):
        if not target.startswith(("http://", "https://")):
            assert (document.parent / target).exists(), target


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_file_that_is_named_exists(document: Path) -> None:
    for word in CODE.findall(document.read_text()):
        if re.fullmatch(rf"(?:{'|'.join(ROOTS)})/[\w./-]*", word):
            # What a start makes is not in the repository.
            assert word.startswith("deploy/compose/secrets") or (ROOT / word).exists(), word


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_command_that_is_named_exists(document: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    text = document.read_text()
    for target in re.findall(r"^make ([\w-]+)|`make ([\w-]+)", text, re.MULTILINE):
        assert "".join(target) in targets, target
    for command in re.findall(r"(?:^|`|bin/)nigredo (?:--home \S+ )?([a-z]+)\b", text, re.MULTILINE):
        assert command in COMMANDS, command


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_kcat_that_reads_ends_at_the_end_of_the_topic(document: Path) -> None:
    for command in re.findall(r"`(kcat [^`\n]*-C[^`\n]*)`|^(kcat .*-C.*)", document.read_text(), re.MULTILINE):
        assert " -e" in "".join(command), command


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_setting_that_is_named_exists(document: Path) -> None:
    known = {field.metadata["name"] for field in fields(Settings)}
    known |= {
        "NIGREDO_HOME",
        "NIGREDO_URL",
        "NIGREDO_TOKEN",
        "NIGREDO_METRICS",
        "NIGREDO_CACHE",
        "NIGREDO_TEST_HOME",
        "NIGREDO_TEST_OUTAGE_SECONDS",
        "NIGREDO_TEST_STACK",
        "NIGREDO_PORT",
        "KAFKA_CLIENT_PROPERTIES",
        "SCHEMA_REGISTRY_BASIC_AUTH_USER_INFO",
    }
    for name in re.findall(
        r"\b((?:NIGREDO|WEBHOOK|KAFKA|INGEST|RATE|DB|TOPIC|SCHEMA)_[A-Z_]+)\b", document.read_text()
    ):
        assert name in known | {"DB_ENDPOINT", "DB_USERNAME", "KAFKA_BOOTSTRAP_SERVERS"}, name


@pytest.mark.parametrize(
    ("document", "mark", "folder", "shown"),
    [
        ("README.md", "fast", "results", headlines),
        ("docs/PERFORMANCE.md", "bench", "results", quoted),
        ("docs/PERFORMANCE.md", "cost", "results", costs),
        ("docs/PERFORMANCE.md", "profile", "results/profile", profiled.table),
        ("docs/PERFORMANCE.md", "long", "results/long", lambda found: long.table(found) + "\n"),
    ],
)
def test_the_figures_in_the_documents_are_the_results_that_are_kept(
    document: str, mark: str, folder: str, shown: Callable[[Sequence[Document]], str]
) -> None:
    found = between(mark).search((ROOT / document).read_text())

    assert found is not None
    measured = load(ROOT / "bench" / folder)
    assert found[2] == (shown(measured) if measured else NOT_MEASURED)


def test_the_faults_in_the_document_are_the_runs_that_are_kept() -> None:
    found = between(chaos_report.MARK).search(chaos_report.PAGE.read_text())

    assert found is not None
    assert found[2] == chaos_report.table(chaos_report.load())


def test_the_disasters_in_the_document_are_the_run_that_is_kept() -> None:
    found = between(chaos_report.DISASTERS_MARK).search(chaos_report.PAGE.read_text())

    assert found is not None
    kept = chaos_report.load_disasters()
    assert found[2] == ("".join(map(chaos_report.disaster_table, kept)) or NOT_MEASURED)


def test_the_page_of_settings_is_made_from_them() -> None:
    assert settings_document.DOCUMENT.read_text(encoding="utf-8") == settings_document.page(), "`make format` writes it"


def test_the_glossary_has_every_event_topic_command_and_family_of_metrics() -> None:
    glossary = (ROOT / "docs" / "GLOSSARY.md").read_text(encoding="utf-8")
    classes = {name for name, found in vars(events).items() if isinstance(found, type) and is_dataclass(found)}
    families = {metric.name.removeprefix("nigredo_").partition("_")[0] for metric in CATALOGUE}
    wanted = classes | TOPICS.keys() | SCHEMA_PINS.keys() | {RETRIES_PREFIX}
    wanted -= {name for name in wanted if name.startswith(RETRIES_PREFIX) and name != RETRIES_PREFIX}
    wanted |= {f"nigredo {command}" for command in COMMANDS if command != "up"}
    wanted |= {f"nigredo_{family}_" for family in families}

    assert {name for name in wanted if name not in glossary} == set()
