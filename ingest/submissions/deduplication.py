"""Deduplication of forms: resent under the same `Idempotency-Key`, or sent twice by a double click."""

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
SECRET_MIN_BYTES = 24
REMEMBERED_S = 24 * 3600.0
REMEMBERED_MAX = 100_000
DOUBLE_CLICK_S = 10.0
RECENT_MAX = 10_000
REPEATS_KEPT = 10
"""Repeats of one form within `DOUBLE_CLICK_S` that are stored; no person clicks more often, and a program must not get
round the limit's bounds."""


@dataclass(slots=True)
class First:
    """The first submission of a form: durable or in flight."""

    lead_id: UUID
    acknowledged: asyncio.Future[Acknowledgement]
    at: float
    repeats: int = 0

    def keeps_repeat(self) -> bool:
        """Count a repeat of the form; return whether the repeat is to be stored with its contents."""
        self.repeats += 1
        return self.repeats <= REPEATS_KEPT


class Deduplication:
    """Derives the lead ids of keyed forms, and caches recent forms. Bounded; belongs to one event loop."""

    def __init__(self, secret: bytes) -> None:
        """secret: the same at every node, so that every node derives the same id for a repeat."""
        self._secret = secret
        self._bodies: OrderedDict[bytes, tuple[bytes, float]] = OrderedDict()
        self._recent: OrderedDict[bytes, First] = OrderedDict()

    def lead_id(self, network: str, key: str, form: Form) -> UUID:
        """Return the lead id of a keyed form; the same form under the same key always gets the same id.

        Raises InvalidForm with 400 for a malformed key, and with 422 for a key that this node saw with another form.
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
        # A name-based UUID by a stronger hash than version 5 prescribes; Python 3.11 does not support version 8.
        return UUID(bytes=self._hash(key, content.hex())[:16], version=5)

    def first(self, network: str, form: Form) -> First | None:
        """Return the first submission of this form by this network within `DOUBLE_CLICK_S`; None when there is none."""
        found = self._recent.get(self._fingerprint(network, form))
        if found is None or time.monotonic() - found.at > DOUBLE_CLICK_S or _failed(found.acknowledged):
            return None
        return found

    def sent(self, network: str, form: Form, lead_id: UUID, acknowledged: asyncio.Future[Acknowledgement]) -> None:
        """Cache a form for `DOUBLE_CLICK_S`, in which it may be sent again by mistake."""
        now = time.monotonic()
        self._recent[self._fingerprint(network, form)] = First(lead_id, acknowledged, now)
        while len(self._recent) > RECENT_MAX or now - next(iter(self._recent.values())).at > DOUBLE_CLICK_S:
            self._recent.popitem(last=False)

    def _fingerprint(self, network: str, form: Form) -> bytes:
        """Return the key under which a network's form is cached."""
        return self._hash(network, self._content(form).hex())

    def _content(self, form: Form) -> bytes:
        """Return a hash over everything that distinguishes one form from another, of any length."""
        contact = form.contact
        extra = sorted(contact.extra.items())
        return self._hash(json.dumps((contact.name, contact.email, contact.message, extra, form.form_id)))

    def _hash(self, *parts: str) -> bytes:
        return hmac.digest(self._secret, "\0".join(parts).encode(), hashlib.sha256)


def read_secret(file: Path) -> bytes:
    """Return the secret that lead ids are derived from. Raises ConfigurationError when unreadable or too short."""
    try:
        secret = file.read_bytes().strip()
    except OSError as error:
        raise ConfigurationError(f"IDEMPOTENCY_SECRET_FILE: cannot be read ({error.strerror})") from None
    if len(secret) < SECRET_MIN_BYTES:
        raise ConfigurationError(f"IDEMPOTENCY_SECRET_FILE: must hold at least {SECRET_MIN_BYTES} random characters")
    return secret


def _failed(future: asyncio.Future[Acknowledgement]) -> bool:
    return future.done() and (future.cancelled() or future.exception() is not None)
