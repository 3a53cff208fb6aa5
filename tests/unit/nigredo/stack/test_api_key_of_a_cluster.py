"""API key of `nigredo env`: put into each new cluster once, so that a revoked key stays revoked."""

from __future__ import annotations

from pathlib import Path

import pytest

from nigredo.control.admin import ControlAdmin
from nigredo.kafka.topic_reader import TopicReader
from nigredo.settings import Settings
from nigredo.stack.embedded import OTHER_CLUSTER, _ensure_api_key
from nigredo.stack.home import Home


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.setattr(TopicReader, "cluster_id", lambda _: (tmp_path / "cluster").read_text())
    made = Home.open(tmp_path, 21_000)
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "api-key").write_text("nig_0123456789abcdef0123456789abcdef0123456789abcdef")
    return made


def started(home: Home, cluster: str, monkeypatch: pytest.MonkeyPatch) -> tuple[int, list[str]]:
    """Return how many keys a start put into a cluster, and the lines it printed."""
    put: list[str] = []
    printed: list[str] = []
    (home.dir / "cluster").write_text(cluster)
    monkeypatch.setattr(ControlAdmin, "put", lambda _, kind, *__, **___: put.append(kind))
    monkeypatch.setattr("nigredo.stack.embedded.stored_form", lambda *_: type("Key", (), {"id": "k"}))
    monkeypatch.setattr("nigredo.stack.embedded.as_value", lambda _: {})
    _ensure_api_key(Settings.from_environment({}), home, printed.append)
    return len(put), printed


def test_a_cluster_gets_the_key_once(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    assert started(home, "first", monkeypatch) == (1, [])
    assert started(home, "first", monkeypatch) == (0, [])


def test_another_cluster_gets_the_key_and_the_loss_is_reported(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    started(home, "first", monkeypatch)

    assert started(home, "second", monkeypatch) == (1, [OTHER_CLUSTER])
    assert started(home, "second", monkeypatch) == (0, [])


def test_the_mark_of_an_earlier_release_counts_for_the_present_cluster(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home.dir / "secrets" / "api-key.known").touch()

    assert started(home, "first", monkeypatch) == (0, [])
    assert started(home, "second", monkeypatch) == (1, [OTHER_CLUSTER])
