"""Downloads of the embedded stack's Java programs, verified against a committed lock and shared by all checkouts.

A cached file carries its checksum in its name and gets that name only after verification, so that a present file is
trusted without hashing it again, an interrupted download simply restarts, and a second start needs no network.
"""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from jgo.maven import MavenContext, PythonResolver

from nigredo.backoff import Backoff
from nigredo.errors import DependencyDown

KAFKA = "org.apache.kafka:kafka_2.13:4.4.0"
LOGGING = "org.apache.logging.log4j:log4j-slf4j-impl:2.25.5"
"""Binding for slf4j 1.7, which Kafka logs through; without a binding the broker logs nothing."""
REGISTRY = "io.apicurio:apicurio-registry-app:3.3.3"
DOWNLOADS_AT_ONCE = 6
DOWNLOAD_TRIES = 4
REQUEST_TIMEOUT_S = 60
LOCK_WAIT_S = 900.0

Progress = Callable[[int, int], None]
"""Called with bytes downloaded and bytes in total, from several threads."""


@dataclass(frozen=True, slots=True)
class Artifact:
    """One locked file of the Maven repository."""

    group: str
    name: str
    version: str
    classifier: str
    packaging: str
    size: int
    sha256: str

    @property
    def file_name(self) -> str:
        """Name of the file in the cache, with the first 12 digits of its checksum."""
        suffix = f"-{self.classifier}" if self.classifier else ""
        return f"{self.name}-{self.version}{suffix}-{self.sha256[:12]}.{self.packaging}"


@dataclass(frozen=True, slots=True)
class Artifacts:
    """Locations of the Java programs on this machine."""

    cache: Path
    kafka_class_path: tuple[Path, ...]
    registry_dir: Path


def cache_dir(environment: Mapping[str, str]) -> Path:
    """Return the cache folder of all checkouts: `NIGREDO_CACHE`, else `nigredo` in `XDG_CACHE_HOME` or `~/.cache`."""
    if chosen := environment.get("NIGREDO_CACHE"):
        return Path(chosen).absolute()
    base = environment.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base).absolute() / "nigredo"


def read_lock() -> list[Artifact]:
    """Return the locked files; the registry's archive is the last."""
    text = (resources.files("nigredo.stack") / "artifacts.lock").read_text(encoding="utf-8")
    artifacts = []
    for line in text.splitlines():
        if line and not line.startswith("#"):
            coordinates, size, sha256 = line.split()
            group, name, version, packaging, *classifier = coordinates.split(":")
            artifacts.append(Artifact(group, name, version, "".join(classifier), packaging, int(size), sha256))
    return artifacts


def fetch(cache: Path, progress: Progress) -> Artifacts:
    """Return the locations of the Java programs, after downloading missing files.

    Raises DependencyDown when the Maven repository cannot be reached or serves a file that differs from the lock.
    """
    jars, archive = [a for a in read_lock() if a.packaging == "jar"], read_lock()[-1]
    found = Artifacts(
        cache=cache,
        kafka_class_path=tuple(cache / jar.file_name for jar in jars),
        registry_dir=cache / archive.file_name.removesuffix(".tar.gz"),
    )
    if not _missing(cache, jars) and found.registry_dir.is_dir():
        return found
    cache.mkdir(parents=True, exist_ok=True)
    with _locked(cache):
        unfinished = cache / "unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        wanted = _missing(cache, jars) + ([] if found.registry_dir.is_dir() else _missing(cache, [archive]))
        unfinished.mkdir(exist_ok=True)
        _download(wanted, cache, unfinished, progress)
        if not found.registry_dir.is_dir():
            _unpack(cache / archive.file_name, found.registry_dir, unfinished)
        shutil.rmtree(unfinished, ignore_errors=True)
    return found


def _missing(cache: Path, artifacts: Sequence[Artifact]) -> list[Artifact]:
    return [artifact for artifact in artifacts if not (cache / artifact.file_name).exists()]


@contextmanager
def _locked(cache: Path) -> Iterator[None]:
    """Hold the cache's lock; the kernel releases it when its owner dies."""
    deadline = time.monotonic() + LOCK_WAIT_S
    with (cache / "lock").open("w") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise DependencyDown(f"another process still downloads into {cache}; try again later") from None
                time.sleep(0.2)
        yield


def _download(wanted: Sequence[Artifact], cache: Path, unfinished: Path, progress: Progress) -> None:
    total, done = sum(artifact.size for artifact in wanted), [0]

    @contextmanager
    def counting(_name: str, _size: int) -> Iterator[Callable[[int], None]]:
        def add(size: int) -> None:
            done[0] += size
            progress(done[0], total)

        yield add

    def download(artifact: Artifact) -> None:
        backoff = Backoff(first_s=1.0, longest_s=10.0)
        while True:
            try:
                return _download_one(artifact, cache, unfinished, counting)
            except DependencyDown:
                # A connection that broke for a moment, or a truncated file.
                if backoff.failures + 1 >= DOWNLOAD_TRIES:
                    raise
                time.sleep(backoff.next_wait_s())

    pool = ThreadPoolExecutor(DOWNLOADS_AT_ONCE)
    try:
        # Largest first, because it takes longest.
        for _ in pool.map(download, sorted(wanted, key=lambda artifact: -artifact.size)):
            pass
    finally:
        pool.shutdown(cancel_futures=True)


def _download_one(artifact: Artifact, cache: Path, unfinished: Path, counting: Callable[..., Any]) -> None:
    """Download one file into a temporary folder, verify its checksum and move it into the cache."""
    with tempfile.TemporaryDirectory(dir=unfinished) as scratch:
        context = MavenContext(
            repo_cache=Path(scratch), timeout=REQUEST_TIMEOUT_S, resolver=PythonResolver(progress_callback=counting)
        )
        component = context.project(artifact.group, artifact.name).at_version(artifact.version)
        try:
            path = component.artifact(classifier=artifact.classifier, packaging=artifact.packaging).resolve()
        except Exception as error:
            # The client raises errors of many kinds, from DNS to proxies.
            raise DependencyDown(
                f"cannot download {artifact.name} {artifact.version}: {error}; fix that and run the command again: "
                "files already downloaded are kept"
            ) from error
        if _sha256(path) != artifact.sha256:
            raise DependencyDown(f"{artifact.name} {artifact.version} is not the locked file: its checksum differs")
        path.rename(cache / artifact.file_name)


def _unpack(archive: Path, target: Path, unfinished: Path) -> None:
    """Unpack the registry beside its target folder and rename it there in one step."""
    unfinished.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=unfinished) as scratch:
        with tarfile.open(archive) as tar:
            # Python 3.11.4 and later refuse members outside the folder; before, the checksum alone vouches for them.
            tar.extraction_filter = getattr(tarfile, "data_filter", lambda member, _: member)
            tar.extractall(scratch)  # noqa: S202
        Path(scratch).chmod(0o755)
        entries = list(Path(scratch).iterdir())
        (entries[0] if len(entries) == 1 else Path(scratch)).rename(target)
        Path(scratch).mkdir(exist_ok=True)
    archive.unlink()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_lock(target: Path) -> None:
    """Resolve the Java programs and their dependencies again and write the lock; `make lock` runs this."""
    with tempfile.TemporaryDirectory() as scratch:
        context = MavenContext(repo_cache=Path(scratch), timeout=REQUEST_TIMEOUT_S)
        # The binding comes without its dependencies: resolved together, its parent would choose Kafka's versions.
        roots = [context.create_dependency(coordinates) for coordinates in (KAFKA, LOGGING)]
        _, resolved = context.resolver.resolve(roots[:1])
        group, name, version = REGISTRY.split(":")
        registry = context.project(group, name).at_version(version).artifact(classifier="all", packaging="tar.gz")
        jars = {(d.groupId, d.artifactId): d.artifact for d in [*roots, *resolved]}
        lines = []
        for artifact in [*(jars[key] for key in sorted(jars)), registry]:
            path = artifact.resolve()
            where = [artifact.groupId, artifact.artifactId, artifact.version, artifact.packaging]
            coordinates = ":".join(where + ([artifact.classifier] if artifact.classifier else []))
            lines.append(f"{coordinates} {path.stat().st_size} {_sha256(path)}")
    head = "# group:artifact:version:packaging[:classifier] size sha256; written by `make lock`\n"
    target.write_text(head + "\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write_lock(Path(__file__).with_name("artifacts.lock"))
