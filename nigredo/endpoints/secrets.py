"""Secret file of an endpoint, and the signature of a request.

Signed according to the Standard Webhooks specification: HMAC-SHA256 of `id.timestamp.body`, once with each active
secret, so that a receiver can rotate its secret without losing a delivery. A line of the file is `whsec_…`, newest
first; the older of two may end with ` until 2026-11-24T12:00:00+00:00`, and expires at that time.
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
"""Length of a new key; Standard Webhooks requires 24 to 64 random bytes."""
PREFIX = "whsec_"


@dataclass(frozen=True, slots=True)
class Secret:
    """A secret: the key, and the time at which the key expires; None for no expiry."""

    key: bytes = field(repr=False)
    until: datetime | None = None

    @property
    def line(self) -> str:
        """The secret as a line of the secret file, without line feed."""
        text = PREFIX + base64.b64encode(self.key).decode()
        return text if self.until is None else f"{text} until {self.until.isoformat(timespec='seconds')}"


def signature(webhook_id: str, timestamp: str, body: bytes, keys: Sequence[bytes]) -> str:
    """Return the value of the header `webhook-signature`: one `v1,…` per key, separated by spaces."""
    signed = f"{webhook_id}.{timestamp}.".encode() + body
    digests = (hmac.digest(key, signed, hashlib.sha256) for key in keys)
    return " ".join("v1," + base64.b64encode(digest).decode() for digest in digests)


def active(found: Sequence[Secret], now: datetime) -> tuple[bytes, ...]:
    """Return the keys to sign with, newest first. The newest never expires, so that every request is signed."""
    return tuple(s.key for number, s in enumerate(found) if number == 0 or s.until is None or now < s.until)


def read_secrets(file: Path) -> tuple[Secret, ...]:
    """Return the secrets in a file, one or two, newest first.

    Raises ConfigurationError, which names the file and never shows its content.
    """
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"WEBHOOK_SECRET_FILE: {file} cannot be read ({type(error).__name__})") from None
    try:
        found = tuple(_parsed(line) for line in lines)
    except (ValueError, binascii.Error):
        raise ConfigurationError(f"WEBHOOK_SECRET_FILE: a line of {file} is not a `whsec_` secret in base64") from None
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
    """Return a new secret and the previous newest one, which expires at `old_until`; older secrets are dropped."""
    return (Secret(secrets.token_bytes(KEY_BYTES)), Secret(found[0].key, old_until))


def write_secrets(file: Path, found: Sequence[Secret]) -> None:
    """Replace a secret file atomically, readable by its owner alone at all times. Raises ConfigurationError.

    The owner is kept, because root may change a file that another user's process reads.
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
