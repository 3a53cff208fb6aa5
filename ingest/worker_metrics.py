"""What ingest's `/metrics` tells: the numbers of all workers of the server together.

Workers are processes of their own. Each writes its numbers into files that it maps into memory, by the library's
multiprocess mode; the server's first process, which takes no requests, adds them up when it is asked.
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
MEMORY = Path("/dev/shm")  # noqa: S108 - a folder of our own in there, and only if it is ours


def parent_folder(state_dir: Path, memory: Path = MEMORY) -> Path:
    """Return where servers make their folders: in memory if there is such a place, else among the state.

    Who writes to a file that is mapped into memory is killed (SIGBUS) when the disk has no room for it: a full disk
    would end the workers, and keep them from starting, though Kafka takes forms all the same.
    """
    ours = memory / f"nigredo-{os.getuid()}"
    with suppress(OSError):
        ours.mkdir(mode=0o700, exist_ok=True)
        found = ours.lstat()
        # Everybody may write there: what somebody else put in its place is not used.
        if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid():
            return ours
    return state_dir / "ingest-metrics"


@contextmanager
def shared_folder(parent: Path) -> Iterator[Path]:
    """Make a folder for the numbers of one server's workers, empty at its start and gone after its end.

    Several servers may share the parent, as nodes with one state folder do. What a killed one left behind is removed:
    its lock is free.
    """
    parent.mkdir(parents=True, exist_ok=True)
    at_work = os.open(parent, os.O_RDONLY)
    try:
        # One at a time: a folder is not locked yet when it was just made.
        fcntl.flock(at_work, fcntl.LOCK_EX)
        _remove_left(parent)
        folder = Path(tempfile.mkdtemp(dir=parent))
        lock = (folder / LOCK).open("wb")
        fcntl.flock(lock, fcntl.LOCK_EX)
    finally:
        os.close(at_work)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        lock.close()


def _remove_left(parent: Path) -> None:
    for left in parent.iterdir():
        with suppress(OSError), (left / LOCK).open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(left, ignore_errors=True)


class MultiprocessExposition:
    """Adds up the workers' numbers. Call it in the server's first process."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()

    def __call__(self) -> bytes:
        """Return the text of `/metrics`."""
        registry = CollectorRegistry()
        with self._lock:
            self._fold_ended()
            MultiProcessCollector(registry, str(self._folder))  # type: ignore[no-untyped-call]
            registry.register(_Processes())
            return generate_latest(registry)

    def _fold_ended(self) -> None:
        """Add what ended workers counted to one file, and forget their gauges: else each respawn leaves files."""
        files = list(self._folder.glob("*.db"))
        # Asked after the files: whoever has one was there by then.
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
    """Processor time, memory and open files under the library's usual names, of all processes of the server."""

    def collect(self) -> Iterable[Metric]:
        """Return them as they are now."""
        own = psutil.Process()
        # With what its ended workers used, so that the time never goes back.
        cpu_s = sum(own.cpu_times()[:4])
        resident = virtual = files = files_max = 0
        for process in (own, *own.children()):
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                if process.pid != os.getpid():
                    # First: one that ended, and was not waited for yet, still tells this much.
                    times = process.cpu_times()
                    cpu_s += times.user + times.system
                memory = process.memory_info()
                opened, most = process.num_fds(), process.rlimit(psutil.RLIMIT_NOFILE)[0]
                resident, virtual = resident + memory.rss, virtual + memory.vms
                files, files_max = files + opened, files_max + most
        yield CounterMetricFamily("process_cpu_seconds", "Total user and system CPU time spent in seconds.", cpu_s)
        yield GaugeMetricFamily("process_resident_memory_bytes", "Resident memory size in bytes.", resident)
        yield GaugeMetricFamily("process_virtual_memory_bytes", "Virtual memory size in bytes.", virtual)
        yield GaugeMetricFamily("process_open_fds", "Number of open file descriptors.", files)
        yield GaugeMetricFamily("process_max_fds", "Maximum number of open file descriptors.", files_max)
        started = own.create_time()
        yield GaugeMetricFamily("process_start_time_seconds", "Start time since unix epoch in seconds.", started)
