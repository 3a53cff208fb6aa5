from __future__ import annotations

from types import SimpleNamespace

import pytest
from confluent_kafka import KafkaError

from nigredo.kafka import security
from nigredo.kafka.security import RefusalNotice

REFUSED, AWAY = KafkaError(KafkaError._AUTHENTICATION), KafkaError(KafkaError._TRANSPORT)


@pytest.fixture
def at_s(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time of the notice's clock, in seconds."""
    now = [1000.0]
    monkeypatch.setattr(security.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    messages: list[str] = []
    monkeypatch.setattr(security, "log", SimpleNamespace(error=lambda message, **_: messages.append(message)))
    return messages


def test_a_login_that_is_refused_again_is_logged_once_a_minute(at_s: list[float], logged: list[str]) -> None:
    notice = RefusalNotice()
    for _ in range(20):
        notice(REFUSED)
        at_s[0] += 4.0

    assert len(logged) == 2


def test_a_login_that_failed_once_is_not_logged_since_a_timeout_of_the_handshake_has_the_same_code(
    at_s: list[float], logged: list[str]
) -> None:
    notice = RefusalNotice()
    for error in (AWAY, REFUSED, AWAY):
        notice(error)
    at_s[0] += security.AGAIN_WITHIN_S + 1
    notice(REFUSED)

    assert logged == []
