"""Submissions as `nigredo.submissions` holds them. Every form becomes one, while somebody waits for the answer."""

from __future__ import annotations

from schemas.codec import Codec
from schemas.events import Submission
from schemas.primitives import number, optional_text, text, texts, time
from schemas.topics import SUBMISSIONS

FIRST_OF_THE_TOPIC = b"\x00"
ID_LENGTH = b"\x48"
"""An id has 36 letters."""


def encoded(codec: Codec, submission: Submission) -> bytes:
    """Return what `Codec.encode` would, in a third of its time; a test holds the two together."""
    contact = submission.contact
    return b"".join(
        (
            codec.prefix(SUBMISSIONS),
            FIRST_OF_THE_TOPIC,
            ID_LENGTH,
            str(submission.id).encode(),
            text(submission.client_network),
            text(submission.ip_address),
            optional_text(submission.user_agent),
            optional_text(submission.form_id),
            optional_text(submission.source),
            text(contact.name),
            text(contact.email),
            text(contact.message),
            texts(contact.extra),
            time(submission.taken_at),
            number(submission.limit),
            number(submission.window_s),
            b"\x01" if submission.exempt else b"\x00",
            optional_text(submission.edge_verdict),
            optional_text(submission.spam_sign),
        )
    )
