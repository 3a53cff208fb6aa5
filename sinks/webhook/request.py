"""What is sent: the body of the operations runbook, byte for byte the same at every attempt, and its signature.

Signed as the Standard Webhooks specification says: HMAC-SHA256 of `id.timestamp.body`, once with each active secret,
so that a receiver can change its secret without losing a delivery.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path

from nigredo.errors import ConfigurationError
from schemas.events import Lead

SECRETS_MAX = 2
USER_AGENT = "Nigredo-Webhook/1"


def body_of(lead: Lead) -> bytes:
    """Return the body for a lead: a function of the lead alone, so a retry or a replay sends the same bytes."""
    document = {
        "event_type": "lead.created",
        "timestamp": lead.taken_at.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "lead": {
            "id": str(lead.id),
            "name": lead.contact.name,
            "email": lead.contact.email,
            "message": lead.contact.message,
        },
    }
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()


def headers_of(lead: Lead, body: bytes, attempt: int, now: datetime, secrets: Sequence[bytes]) -> Mapping[str, str]:
    """Return the headers of one attempt: `webhook-id` is the lead id, the timestamp is the attempt's own."""
    webhook_id, timestamp = str(lead.id), str(int(now.timestamp()))
    signed = f"{webhook_id}.{timestamp}.".encode() + body
    digests = (hmac.new(secret, signed, hashlib.sha256).digest() for secret in secrets)
    return {
        "content-type": "application/json",
        "user-agent": USER_AGENT,
        "webhook-id": webhook_id,
        "webhook-timestamp": timestamp,
        "webhook-signature": " ".join("v1," + base64.b64encode(digest).decode() for digest in digests),
        "nigredo-attempt": str(attempt),
    }


def read_secrets(file: Path) -> tuple[bytes, ...]:
    """Return the keys in a secret file: one `whsec_…` a line, newest first, one or two.

    Raises ConfigurationError naming the file and not what stands in it.
    """
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"WEBHOOK_SECRET_FILE: {file} cannot be read ({type(error).__name__})") from None
    try:
        if not all(line.startswith("whsec_") for line in lines):
            raise ValueError
        keys = tuple(base64.b64decode(line.removeprefix("whsec_"), validate=True) for line in lines)
    except (ValueError, binascii.Error):
        raise ConfigurationError(f"WEBHOOK_SECRET_FILE: a line of {file} is no `whsec_` secret in base64") from None
    if not 1 <= len(keys) <= SECRETS_MAX or any(len(key) < 16 for key in keys):
        raise ConfigurationError(f"WEBHOOK_SECRET_FILE: {file} must hold one or two secrets of 16 bytes or more")
    return keys
