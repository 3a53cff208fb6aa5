"""A lead, signing keys and allowed networks for attempts at receivers of tests."""

from __future__ import annotations

from datetime import UTC, datetime
from ipaddress import ip_network
from uuid import uuid4

from schemas.events import Contact, Lead

NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)
LEAD = Lead(
    uuid4(),
    "192.0.2.1",
    "192.0.2.1",
    None,
    None,
    None,
    Contact("Ana", "ana@example.com", "Oi", {}),
    NOON,
    NOON,
    False,
    0,
    0,
)
KEYS = [b"k" * 32]
LOOPBACK = [ip_network("127.0.0.0/8"), ip_network("::1/128")]
