from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException

from nigredo.stack.part import READY
from nigredo.stack.parts import kafka
from nigredo.stack.parts.kafka import BrokerProbe


def test_a_probe_whose_client_got_no_answer_asks_with_another_one(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []
    closed: list[Any] = []

    class Client:
        """Answers while it is the second one; a client that failed once never answers again."""

        def __init__(self, config: dict[str, Any]) -> None:
            assert config["client.id"] == "probe"
            made.append(self)

        def list_topics(self, *, timeout: float) -> Any:
            if len(made) == 1:
                raise KafkaException(KafkaError(KafkaError._TRANSPORT))
            return SimpleNamespace(brokers={1: "broker"})

        def close(self) -> None:
            closed.append(self)

    monkeypatch.setattr(kafka, "Consumer", Client)
    probe = BrokerProbe(lambda: {"client.id": "probe"})

    assert [probe.waiting_for() for _ in range(3)] == ["start", READY, READY]
    assert len(made) == 2
    assert closed == made[:1]
