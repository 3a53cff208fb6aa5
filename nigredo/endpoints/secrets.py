"""The secrets of one endpoint in their file, and the signature of a request.

Signed as the Standard Webhooks specification says: HMAC-SHA256 of `id.timestamp.body`, once with each active secret,
so that a receiver can change its secret without losing a delivery. A line of the file is `whsec_…`, newest first; the
older of two may end with ` until 2026-11-24T12:00:00+00:00`, and is not signed with any more from then on.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from nigredo.errors import ConfigurationError

SECRETS_MAX = 2
KEY_LEAST_BYTES = 16
KEY_BYTES = 32
"""Standard Webhooks asks for 24 to 64 random bytes."""
PREFIX = "whsec_"


@dataclass(frozen=True, slots=True)
class Secret:
    """One secret: the key, and from when it is not signed with any more."""

    key: bytes = field(repr=False)
    until: datetime | None = None

    @property
    def line(self) -> str:
        """How it stands in the file."""
        text = PREFIX + base64.b64encode(self.key).decode()
        return text if self.until is None else f"{text} until {self.until.isoformat(timespec='seconds')}"


def signature(webhook_id: str, timestamp: str, body: bytes, keys: Sequence[bytes]) -> str:
    """Return the header `webhook-signature`."""
    signed = f"{webhook_id}.{timestamp}.".encode() + body
    digests = (hmac.digest(key, signed, hashlib.sha256) for key in keys)
    return " ".join("v1," + base64.b64encode(digest).decode() for digest in digests)


def active(found: Sequence[Secret], now: datetime) -> tuple[bytes, ...]:
    """Return the keys to sign with, newest first. The newest never ends by itself: something must sign."""
    return tuple(s.key for number, s in enumerate(found) if number == 0 or s.until is None or now < s.until)


def read_secrets(file: Path) -> tuple[Secret, ...]:
    """Return the secrets in a file, one or two, newest first.

    Raises ConfigurationError naming the file and not what stands in it.
    """
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"WEBHOOK_SECRET_FILE: {file} cannot be read ({type(error).__name__})") from None
    try:
        found = tuple(_parsed(line) for line in lines)
    except (ValueError, binascii.Error):
        raise ConfigurationError(f"WEBHOOK_SECRET_FILE: a line of {file} is no `whsec_` secret in base64") from None
    if not 1 <= len(found) <= SECRETS_MAX or any(len(secret.key) < KEY_LEAST_BYTES for secret in found):
        raise ConfigurationError(
            f"WEBHOOK_SECRET_FILE: {file} must hold one or two secrets of {KEY_LEAST_BYTES} bytes or more"
        )
    return found


def _parsed(line: str) -> Secret:
    text, separator, until = line.partition(" until ")
    if not text.startswith(PREFIX):
        raise ValueError
    ends = datetime.fromisoformat(until.strip()) if separator else None
    if ends is not None and ends.tzinfo is None:
        raise ValueError
    return Secret(base64.b64decode(text.removeprefix(PREFIX).strip(), validate=True), ends)


def rotated(found: Sequence[Secret], old_until: datetime) -> tuple[Secret, ...]:
    """Return a new secret, and the newest so far, which ends at `old_until`; what was older is gone."""
    return (Secret(secrets.token_bytes(KEY_BYTES)), Secret(found[0].key, old_until))


def write_secrets(file: Path, found: Sequence[Secret]) -> None:
    """Replace a secret file at once, readable by its owner alone at every moment. Raises ConfigurationError.

    The owner stays the same: root may change a file that another user's process reads.
    """
    unfinished = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        with os.fdopen(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as opened:
            opened.write("".join(f"{secret.line}\n" for secret in found))
            opened.flush()
            if os.geteuid() == 0 and file.exists():
                before = file.stat()
                os.fchown(opened.fileno(), before.st_uid, before.st_gid)
            os.fsync(opened.fileno())
        unfinished.replace(file)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        raise ConfigurationError(f"WEBHOOK_SECRET_FILE: {file} cannot be written ({error.strerror})") from None
