"""Worker metrics: ingest's `/metrics`, added up over all worker processes of the server.

Each worker writes its values into memory-mapped files, by the library's multiprocess mode. The server's first process,
which serves no forms, adds them up for each scrape.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import tempfile
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.multiprocess import MultiProcessCollector

LOCK = "lock"
MEMORY = Path("/dev/shm")  # noqa: S108 - only a subfolder that this user owns is used


def parent_folder(state_dir: Path, memory: Path = MEMORY) -> Path:
    """Return the parent of the metrics folders: in memory where `memory` is writable, else in the state folder.

    A process that writes to a memory-mapped file is killed (SIGBUS) when the disk is full. So a full disk would end the
    workers and keep them from starting, although Kafka accepts forms all the same.
    """
    ours = memory / f"nigredo-{os.getuid()}"
    with suppress(OSError):
        ours.mkdir(mode=0o700, exist_ok=True)
        found = ours.lstat()
        # Every user may write there, so a folder or link of another user is not used.
        if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid():
            return ours
    return state_dir / "ingest-metrics"


@contextmanager
def shared_folder(parent: Path) -> Iterator[Path]:
    """Create a folder for the metric files of one server's workers, and delete it on exit.

    Several servers may share the parent, as nodes with one state folder do. Folders of killed servers are deleted,
    because their locks are free.
    """
    parent.mkdir(parents=True, exist_ok=True)
    parent_lock = os.open(parent, os.O_RDONLY)
    try:
        # One server at a time, because a folder is not locked yet when it was just created.
        fcntl.flock(parent_lock, fcntl.LOCK_EX)
        _delete_abandoned(parent)
        folder = Path(tempfile.mkdtemp(dir=parent))
        lock = (folder / LOCK).open("wb")
        fcntl.flock(lock, fcntl.LOCK_EX)
    finally:
        os.close(parent_lock)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        lock.close()


def _delete_abandoned(parent: Path) -> None:
    for folder in parent.iterdir():
        with suppress(OSError), (folder / LOCK).open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)


class MultiprocessExposition:
    """Adds up the workers' metrics. Call it in the server's first process, the parent of the workers."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()

    def __call__(self) -> bytes:
        """Return the body of `/metrics`, in the Prometheus text format."""
        registry = CollectorRegistry()
        with self._lock:
            self._fold_ended()
            MultiProcessCollector(registry, str(self._folder))  # type: ignore[no-untyped-call]
            registry.register(_Processes())
            return generate_latest(registry)

    def _fold_ended(self) -> None:
        """Add the counters of ended workers to one file of each kind, and delete their gauges.

        Without this each respawn would leave files behind.
        """
        files = list(self._folder.glob("*.db"))
        # Read after the list of files, so that each living owner of a file is found.
        alive = {str(child.pid) for child in psutil.Process().children()}
        for file in files:
            kind, _, rest = file.stem.partition("_")
            if rest.rpartition("_")[2] in alive or rest == "ended":
                continue
            if kind != "gauge":
                self._add(file, self._folder / f"{kind}_ended.db")
            file.unlink()

    @staticmethod
    def _add(file: Path, total: Path) -> None:
        sums = MmapedDict(str(total))  # type: ignore[no-untyped-call]
        try:
            for key, value, at, _ in MmapedDict.read_all_values_from_file(str(file)):  # type: ignore[no-untyped-call]
                sums.write_value(key, sums.read_value(key)[0] + value, at)  # type: ignore[no-untyped-call]
        finally:
            sums.close()  # type: ignore[no-untyped-call]


class _Processes:
    """CPU time, memory and open files of all processes of the server, under the library's usual names."""

    def collect(self) -> Iterable[Metric]:
        """Yield the current values."""
        own = psutil.Process()
        # Includes the CPU time of ended workers, so that the counter never decreases.
        cpu_s = sum(own.cpu_times()[:4])
        resident = virtual = files = files_max = 0
        for process in (own, *own.children()):
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                if process.pid != os.getpid():
                    # First, because a zombie process still reports its CPU time.
                    times = process.cpu_times()
                    cpu_s += times.user + times.system
                memory = process.memory_info()
                opened, opened_max = process.num_fds(), process.rlimit(psutil.RLIMIT_NOFILE)[0]
                resident, virtual = resident + memory.rss, virtual + memory.vms
                files, files_max = files + opened, files_max + opened_max
        yield CounterMetricFamily("process_cpu_seconds", "Total user and system CPU time spent in seconds.", cpu_s)
        yield GaugeMetricFamily("process_resident_memory_bytes", "Resident memory size in bytes.", resident)
        yield GaugeMetricFamily("process_virtual_memory_bytes", "Virtual memory size in bytes.", virtual)
        yield GaugeMetricFamily("process_open_fds", "Number of open file descriptors.", files)
        yield GaugeMetricFamily("process_max_fds", "Maximum number of open file descriptors.", files_max)
        started = own.create_time()
        yield GaugeMetricFamily("process_start_time_seconds", "Start time since unix epoch in seconds.", started)
