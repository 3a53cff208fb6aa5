"""Consumer group of an endpoint, and record keys in the topics of replays and dead leads."""

from __future__ import annotations

from uuid import UUID

from nigredo.components import WEBHOOK_SENDER
from nigredo.settings import Settings

FIRST_ENDPOINT = "fibonacci"
"""Endpoint whose group, process and keys carry no endpoint name; those of all others do."""


def sender_part(endpoint: str) -> str:
    """Return the name of an endpoint's process, as shown by `nigredo status`."""
    return _of_endpoint(WEBHOOK_SENDER, endpoint)


def sender_group(settings: Settings, endpoint: str) -> str:
    """Return the consumer group that delivers to an endpoint, which is also the process's log field `function`."""
    return _of_endpoint(settings.function(WEBHOOK_SENDER), endpoint)


def _of_endpoint(name: str, endpoint: str) -> str:
    return name if endpoint == FIRST_ENDPOINT else f"{name}-{endpoint}"


def key_of(lead_id: UUID, endpoint: str) -> bytes:
    """Return the key of a lead and an endpoint in `nigredo.webhook-replays` and `nigredo.webhook-dead`."""
    return (str(lead_id) if endpoint == FIRST_ENDPOINT else f"{lead_id}:{endpoint}").encode()


def from_key(key: bytes | None) -> tuple[UUID, str] | None:
    """Return the lead id and the endpoint of a key; None for a key in another format."""
    lead_id, named, endpoint = (key or b"").decode("utf-8", "replace").partition(":")
    try:
        return UUID(lead_id), endpoint if named else FIRST_ENDPOINT
    except ValueError:
        return None
