"""An interrupted or truncated download is retried; verified files are kept."""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nigredo.errors import DependencyDown
from nigredo.stack import artifacts
from nigredo.stack.artifacts import Artifact

CONTENT = b"a jar"
OTHER = b"another"


def artifact(name: str, content: bytes) -> Artifact:
    """Return a locked file."""
    return Artifact("g", name, "1", "", "jar", len(content), hashlib.sha256(content).hexdigest())


@pytest.fixture
def repository(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, list[bytes | Exception]]:
    """Answers of a fake repository for each file, in order; the last one repeats."""
    answers: dict[str, list[bytes | Exception]] = {}

    class Context:
        def __init__(self, repo_cache: Path, **_: Any) -> None:
            self.folder = repo_cache

        def project(self, _: str, name: str) -> Any:
            def resolve() -> Path:
                answer = answers[name].pop(0) if len(answers[name]) > 1 else answers[name][0]
                if isinstance(answer, Exception):
                    raise answer
                (self.folder / name).write_bytes(answer)
                return self.folder / name

            found = SimpleNamespace(artifact=lambda **_: SimpleNamespace(resolve=resolve))
            return SimpleNamespace(at_version=lambda _: found)

    monkeypatch.setattr(artifacts, "MavenContext", Context)
    monkeypatch.setattr("time.sleep", lambda _: None)
    (tmp_path / "unfinished").mkdir()
    return answers


def download(cache: Path, *wanted: Artifact) -> None:
    """Download files into a cache."""
    artifacts._download(wanted, cache, cache / "unfinished", lambda *_: None)


def test_a_broken_connection_and_a_truncated_file_are_retried(
    repository: dict[str, list[bytes | Exception]], tmp_path: Path
) -> None:
    repository["kafka"] = [ConnectionResetError(), CONTENT[:3], CONTENT]
    kafka = artifact("kafka", CONTENT)

    download(tmp_path, kafka)

    assert (tmp_path / kafka.file_name).read_bytes() == CONTENT
    assert list((tmp_path / "unfinished").iterdir()) == []


def test_without_the_network_the_error_says_what_to_do(
    repository: dict[str, list[bytes | Exception]], tmp_path: Path
) -> None:
    repository |= {"kafka": [CONTENT], "registry": [ConnectionError("no route")]}
    kafka, registry = artifact("kafka", CONTENT), artifact("registry", OTHER)

    with pytest.raises(DependencyDown, match="cannot download registry 1: no route; fix that and run the command"):
        download(tmp_path, kafka, registry)

    assert not (tmp_path / registry.file_name).exists()


def test_another_file_than_the_locked_one_never_gets_its_name(
    repository: dict[str, list[bytes | Exception]], tmp_path: Path
) -> None:
    repository["kafka"] = [OTHER]

    with pytest.raises(DependencyDown, match="kafka 1 is not the locked file"):
        download(tmp_path, artifact("kafka", CONTENT))

    assert [path.name for path in tmp_path.iterdir()] == ["unfinished"]
