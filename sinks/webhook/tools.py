"""What the process of one endpoint works with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from nigredo.avro.codec import Codec
from nigredo.endpoints.endpoint import Endpoint
from nigredo.kafka.parking import Parking
from nigredo.kafka.publisher import Publisher
from nigredo.settings import Settings
from sinks.webhook.consumer.lead_lookup import LeadLookup
from sinks.webhook.delivery.admission import AdmissionControl
from sinks.webhook.delivery.attempt_log import AttemptLog
from sinks.webhook.transport.client import WebhookClient


@dataclass(frozen=True, slots=True)
class Tools:
    """They live as long as the process."""

    endpoint: Endpoint
    codec: Codec
    publisher: Publisher
    attempts: AttemptLog
    client: WebhookClient
    admission: AdmissionControl
    leads: LeadLookup
    parking: Parking
    settings: Callable[[], Settings]
    """What holds at present."""
    keys: Callable[[], tuple[bytes, ...]]
    """What is signed with at present."""
