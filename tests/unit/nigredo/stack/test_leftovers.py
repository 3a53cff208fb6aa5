"""Parts that outlived their supervisor are ended; processes of another stack never are, even in a copied home."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from nigredo.stack.home import Home
from nigredo.stack.supervisor import end_leftovers

SLEEP = "import time; print(flush=True); time.sleep(600)"


@contextmanager
def part(home: Home, name: str, *arguments: str, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process of this home and write its pid file as the supervisor does."""
    (home.dir / "run").mkdir(parents=True, exist_ok=True)
    (home.dir / "state").mkdir(exist_ok=True)
    plain = {key: text for key, text in os.environ.items() if key != "NIGREDO_STATE_DIR"}
    command = [sys.executable, "-c", SLEEP, *arguments]
    with subprocess.Popen(command, env=plain | environment, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            identity = f"{process.pid} {psutil.Process(process.pid).create_time()}"
            (home.dir / "run" / f"{name}.pid").write_text(identity)
            yield process
        finally:
            process.kill()


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home.open(tmp_path / "home", 23_400)


def state(home: Home) -> dict[str, str]:
    return {"NIGREDO_STATE_DIR": str(home.dir / "state")}


def test_a_copied_home_ends_no_process_of_the_one_it_was_copied_from(home: Home, tmp_path: Path) -> None:
    copy = Home.open(tmp_path / "copy", 23_400)
    with part(home, "ingest", **state(home)) as ingest, part(home, "kafka", str(home.dir / "kafka/p")) as kafka:
        shutil.copytree(home.dir, copy.dir)

        assert end_leftovers(copy) == []
        assert (ingest.poll(), kafka.poll()) == (None, None)
        assert list((copy.dir / "run").glob("*.pid")) == []

        assert end_leftovers(home) == ["ingest", "kafka"]
        assert not psutil.pid_exists(ingest.pid)
        assert not psutil.pid_exists(kafka.pid)


@pytest.mark.parametrize(
    "arguments", ["{home}/kafka/server.properties", "@{home}/registry/java.options", "{home}/postgres"]
)
def test_parts_that_an_earlier_release_started_are_known_by_their_command_lines(home: Home, arguments: str) -> None:
    with part(home, "part", arguments.format(home=home.dir)) as found:
        assert end_leftovers(home) == ["part"]
        assert not psutil.pid_exists(found.pid)


def test_a_home_is_the_same_by_whatever_link_it_is_reached(home: Home, tmp_path: Path) -> None:
    with part(home, "ingest", **state(home)) as found:
        (tmp_path / "link").symlink_to(home.dir)

        assert end_leftovers(Home.open(tmp_path / "link")) == ["ingest"]
        assert not psutil.pid_exists(found.pid)


def test_a_process_that_has_another_ones_number_by_now_is_left_alone(home: Home) -> None:
    with part(home, "ingest", **state(home)) as found:
        (home.dir / "run" / "ingest.pid").write_text(f"{found.pid} 1.5")

        assert end_leftovers(home) == []
        assert found.poll() is None
