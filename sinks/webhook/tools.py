"""What the process of one endpoint works with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from nigredo.kafka import Publisher
from nigredo.parking import Parking
from nigredo.settings import Settings
from schemas.codec import Codec
from sinks.webhook.attempts import AttemptLog
from sinks.webhook.delivery import Deliverer
from sinks.webhook.endpoint import Endpoint
from sinks.webhook.gate import Gate
from sinks.webhook.leads import LeadReader


@dataclass(frozen=True, slots=True)
class Tools:
    """They live as long as the process."""

    endpoint: Endpoint
    codec: Codec
    publisher: Publisher
    attempts: AttemptLog
    deliverer: Deliverer
    gate: Gate
    leads: LeadReader
    parking: Parking
    settings: Callable[[], Settings]
    """What holds at present."""
    keys: Callable[[], tuple[bytes, ...]]
    """What is signed with at present."""
