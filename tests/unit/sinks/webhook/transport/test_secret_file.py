"""Secret file: rewritten, damaged or deleted while the sender runs."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from nigredo.endpoints.secrets import Secret, write_secrets
from nigredo.errors import ConfigurationError
from sinks.webhook.transport.secret_file import LOOK_EVERY_S, SecretFile

NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)
OLD, NEW = Secret(b"o" * 32), Secret(b"n" * 32)


class Time:
    def __init__(self) -> None:
        self.seconds = 0.0

    def pass_(self, seconds: float) -> None:
        self.seconds += seconds

    def wall(self) -> datetime:
        return NOON + timedelta(seconds=self.seconds)

    def timer(self) -> float:
        return self.seconds


def test_a_rewritten_secret_is_used_from_the_next_check_on_and_until_it_expires(tmp_path: Path) -> None:
    file, time = tmp_path / "secret", Time()
    write_secrets(file, [OLD])
    secrets = SecretFile(file, time.wall, time.timer)
    assert secrets.keys() == (OLD.key,)

    write_secrets(file, [NEW, Secret(OLD.key, NOON + timedelta(seconds=60))])
    time.pass_(LOOK_EVERY_S)
    assert secrets.keys() == (NEW.key, OLD.key)
    time.pass_(60)
    assert secrets.keys() == (NEW.key,)


@pytest.mark.parametrize("damage", ["gone", "wrong"])
def test_an_invalid_or_deleted_file_changes_nothing(tmp_path: Path, damage: str) -> None:
    file, time = tmp_path / "secret", Time()
    write_secrets(file, [OLD])
    secrets = SecretFile(file, time.wall, time.timer)

    if damage == "gone":
        file.unlink()
    else:
        file.write_text("hunter2\n")
    time.pass_(LOOK_EVERY_S)

    assert secrets.keys() == (OLD.key,)
    write_secrets(file, [NEW])
    time.pass_(LOOK_EVERY_S)
    assert secrets.keys() == (NEW.key,)


def test_a_missing_file_is_a_configuration_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError):
        SecretFile(tmp_path / "secret")
