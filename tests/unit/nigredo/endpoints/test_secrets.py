"""Secret file of an endpoint: one or two secrets, rotated without losing a delivery."""

from __future__ import annotations

import base64
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from nigredo.endpoints.secrets import Secret, active, read_secrets, rotated, write_secrets
from nigredo.errors import ConfigurationError

NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)
SECRETS = [f"whsec_{base64.b64encode(bytes([n]) * 32).decode()}" for n in (1, 2, 3)]
KEYS = [base64.b64decode(secret.removeprefix("whsec_")) for secret in SECRETS]


def test_a_secret_file_holds_one_or_two_secrets(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text(f"{SECRETS[0]}\n\n{SECRETS[1]}\n")

    assert active(read_secrets(file), NOON) == tuple(KEYS[:2])


@pytest.mark.parametrize(
    "text",
    ["", "\n".join(SECRETS), "hunter2", "whsec_%%%", "whsec_c2hvcnQ=", f"{SECRETS[0]} until noon",
     f"{SECRETS[0]} until 2026-11-24T12:00:00"],
)  # fmt: skip
def test_a_wrong_secret_file_is_refused_without_its_content(tmp_path: Path, text: str) -> None:
    file = tmp_path / "secret"
    file.write_text(text)

    with pytest.raises(ConfigurationError) as refused:
        read_secrets(file)

    assert "WEBHOOK_SECRET_FILE" in str(refused.value)
    assert not any(word in str(refused.value) for line in text.splitlines() for word in [line, line.split()[0]])


def test_after_a_rotation_both_sign_until_the_overlap_is_over(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text(SECRETS[0] + "\n")

    write_secrets(file, rotated(read_secrets(file), NOON + timedelta(hours=1)))

    found = read_secrets(file)
    new = found[0].key
    assert new != KEYS[0]
    assert active(found, NOON) == (new, KEYS[0])
    assert active(found, NOON + timedelta(hours=1)) == (new,)
    assert file.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["secret"]


def test_a_second_rotation_ends_the_oldest_secret() -> None:
    once = rotated([Secret(KEYS[0])], NOON)

    twice = rotated(once, NOON)

    assert [secret.key for secret in twice[1:]] == [once[0].key]
    assert KEYS[0] not in {secret.key for secret in twice}


def test_a_file_that_cannot_be_written_keeps_what_it_has(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as refused:
        write_secrets(tmp_path / "nowhere" / "secret", [Secret(KEYS[0])])

    assert "cannot be written" in str(refused.value)


def test_a_secret_shows_itself_in_no_text() -> None:
    assert repr(KEYS[0]) not in repr(Secret(KEYS[0]))
