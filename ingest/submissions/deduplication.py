"""The same form twice: on purpose under an `Idempotency-Key`, or by an impatient finger."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import time
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from ingest.forms.validation import FieldProblem, Form, InvalidForm
from ingest.publishing.spooling_publisher import Acknowledgement
from nigredo.errors import ConfigurationError

KEY_HEADER = "Idempotency-Key"
KEY_MAX = 255
SECRET_LEAST = 24
REMEMBERED_S = 24 * 3600.0
REMEMBERED_MAX = 100_000
DOUBLE_CLICK_S = 10.0
RECENT_MAX = 10_000
REPEATS_KEPT = 10
"""Of one form within these seconds; no finger clicks more, and a program must not get round the limit's bounds."""


@dataclass(slots=True)
class First:
    """A form that was taken, or is about to be."""

    lead_id: UUID
    acknowledged: asyncio.Future[Acknowledgement]
    at: float
    repeats: int = 0

    def keeps_repeat(self) -> bool:
        """Count the same form once more; return whether its contents are still to be kept."""
        self.repeats += 1
        return self.repeats <= REPEATS_KEPT


class Deduplication:
    """Gives lead ids to keyed forms, and remembers for a while what was sent. Bounded; belongs to one event loop."""

    def __init__(self, secret: bytes) -> None:
        """secret: the same at every node, so that every node gives a repeat the same id."""
        self._secret = secret
        self._bodies: OrderedDict[bytes, tuple[bytes, float]] = OrderedDict()
        self._recent: OrderedDict[bytes, First] = OrderedDict()

    def lead_id(self, network: str, key: str, form: Form) -> UUID:
        """Return the id of a form sent under a key: the same form under the same key has the same.

        Raises FormRefused for a key that cannot be one, and for one that this node saw with another form.
        """
        if not 0 < len(key) <= KEY_MAX or not key.isascii() or not key.isprintable():
            raise InvalidForm(400, FieldProblem(KEY_HEADER, f"must be 1 to {KEY_MAX} printable ASCII characters"))
        now, known, content = time.monotonic(), self._hash(network, key), self._content(form)
        before, since = self._bodies.get(known, (content, now))
        if before != content and now - since < REMEMBERED_S:
            raise InvalidForm(422, FieldProblem(KEY_HEADER, "was used for another form"))
        self._bodies[known] = (content, now)
        self._bodies.move_to_end(known)
        while len(self._bodies) > REMEMBERED_MAX or now - next(iter(self._bodies.values()))[1] > REMEMBERED_S:
            self._bodies.popitem(last=False)
        # A name-based UUID, by a stronger hash than the standard one of version 5; Python 3.11 knows no version 8.
        return UUID(bytes=self._hash(key, content.hex())[:16], version=5)

    def first(self, network: str, form: Form) -> First | None:
        """Return the same form of the same network within the last seconds."""
        found = self._recent.get(self._place(network, form))
        if found is None or time.monotonic() - found.at > DOUBLE_CLICK_S or _failed(found.acknowledged):
            return None
        return found

    def sent(self, network: str, form: Form, lead_id: UUID, acknowledged: asyncio.Future[Acknowledgement]) -> None:
        """Remember a form for the seconds in which it may be sent again by mistake."""
        now = time.monotonic()
        self._recent[self._place(network, form)] = First(lead_id, acknowledged, now)
        while len(self._recent) > RECENT_MAX or now - next(iter(self._recent.values())).at > DOUBLE_CLICK_S:
            self._recent.popitem(last=False)

    def _place(self, network: str, form: Form) -> bytes:
        """Return by what a form of a network is remembered."""
        return self._hash(network, self._content(form).hex())

    def _content(self, form: Form) -> bytes:
        """Return what stands for all that makes a form what it is, however long that is."""
        contact = form.contact
        extra = sorted(contact.extra.items())
        return self._hash(json.dumps((contact.name, contact.email, contact.message, extra, form.form_id)))

    def _hash(self, *parts: str) -> bytes:
        return hmac.digest(self._secret, "\0".join(parts).encode(), hashlib.sha256)


def read_secret(file: Path) -> bytes:
    """Return what lead ids are derived with. Raises ConfigurationError."""
    try:
        secret = file.read_bytes().strip()
    except OSError as error:
        raise ConfigurationError(f"IDEMPOTENCY_SECRET_FILE: cannot be read ({error.strerror})") from None
    if len(secret) < SECRET_LEAST:
        raise ConfigurationError(f"IDEMPOTENCY_SECRET_FILE: must hold at least {SECRET_LEAST} random characters")
    return secret


def _failed(future: asyncio.Future[Acknowledgement]) -> bool:
    return future.done() and (future.cancelled() or future.exception() is not None)
