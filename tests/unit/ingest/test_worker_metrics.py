"""Worker metrics: the values of all workers are added up, also of ended ones."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ingest.worker_metrics import MultiprocessExposition, parent_folder, shared_folder
from tests.unit.nigredo.observability.test_metrics import Told, read, value

WORKER = """
import sys
from nigredo.observability import metrics
from nigredo.settings import Settings
metrics.start("ingest", Settings.from_environment({}))
metrics.RATE_LIMIT_HITS.of().inc(int(sys.argv[1]))
metrics.API_LATENCY.of("/api/leads", "POST").observe(0.3)
metrics.EDGE_NETWORKS.of().set(int(sys.argv[1]))
metrics.SPOOL_OLDEST_AGE.of().set(int(sys.argv[1]))
print("ready", flush=True)
sys.stdin.read()
"""


@contextmanager
def worker(folder: Path, number: int) -> Iterator[subprocess.Popen[str]]:
    """Run a process that writes metrics as a worker does, until the end of the block."""
    process = subprocess.Popen(
        [sys.executable, "-c", WORKER, str(number)],
        env=dict(os.environ) | {"PROMETHEUS_MULTIPROC_DIR": str(folder)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        process.communicate(timeout=10)


def told(exposition: MultiprocessExposition) -> Told:
    return read(exposition().decode())


def counts(exposition: MultiprocessExposition) -> tuple[float | None, ...]:
    """Return a counter, a histogram's count, a gauge that adds up, and a gauge that reports the greatest value."""
    found = told(exposition)
    return (
        value(found, "nigredo_rate_limit_hits_total"),
        value(found, "nigredo_api_latency_seconds_count", route="/api/leads", method="POST"),
        value(found, "nigredo_edge_networks"),
        value(found, "nigredo_spool_oldest_age_seconds"),
    )


def test_what_ended_workers_counted_stays_and_what_they_held_goes(tmp_path: Path) -> None:
    with shared_folder(tmp_path / "metrics") as folder:
        exposition = MultiprocessExposition(folder)
        with worker(folder, 2):
            for number in (30, 400):
                with worker(folder, number):
                    counted = 2 + number + (30 if number == 400 else 0)
                    assert counts(exposition) == (counted, 2 + (number == 400), 2 + number, number)
            for _ in range(2):
                assert counts(exposition) == (432, 3, 2, 2)
            # One file of each kind for each living worker, and one for all ended workers.
            assert len({file.stem.rpartition("_")[2] for file in folder.glob("*.db")}) == 2
        assert counts(exposition)[:2] == (432, 3)
        assert value(told(exposition), "process_resident_memory_bytes")


def test_each_server_has_a_folder_of_its_own_and_only_what_a_killed_one_left_is_removed(tmp_path: Path) -> None:
    left = tmp_path / "left"
    left.mkdir()
    (left / "lock").touch()
    (left / "counter_1.db").touch()

    with shared_folder(tmp_path) as first:
        assert not left.exists()
        (first / "counter_1.db").touch()
        with shared_folder(tmp_path) as second:
            assert second != first
            assert (first / "counter_1.db").exists()
            assert not list(second.glob("*.db"))
        assert not second.exists()
    assert not list(tmp_path.iterdir())


def test_the_time_of_the_processor_never_goes_back(tmp_path: Path) -> None:
    with shared_folder(tmp_path) as folder:
        exposition = MultiprocessExposition(folder)
        with worker(folder, 1):
            before = value(told(exposition), "process_cpu_seconds_total")
        after = value(told(exposition), "process_cpu_seconds_total")

    assert before is not None
    assert after is not None
    # Clock ticks are rounded for each process.
    assert after > before - 0.05


def test_the_numbers_are_kept_in_memory_unless_there_is_no_place_or_it_is_not_ours(tmp_path: Path) -> None:
    memory, state = tmp_path / "memory", tmp_path / "state"
    assert parent_folder(state, memory) == state / "ingest-metrics"

    memory.mkdir()
    ours = parent_folder(state, memory)
    assert ours.parent == memory
    assert ours.stat().st_mode & 0o777 == 0o700
    assert parent_folder(state, memory) == ours

    ours.rmdir()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    ours.symlink_to(elsewhere)
    assert parent_folder(state, memory) == state / "ingest-metrics"
