"""Submissions as `nigredo.submissions` holds them. Every form becomes one, while somebody waits for the answer."""

from __future__ import annotations

from functools import lru_cache

from nigredo.avro.codec import Codec
from nigredo.avro.encoders import number, optional_text, text, texts, time
from schemas.events import Submission
from schemas.topics import SUBMISSIONS

FIRST_OF_THE_TOPIC = b"\x00"
ID_LENGTH = b"\x48"
"""An id has 36 letters."""


def encode_submission(codec: Codec, submission: Submission) -> bytes:
    """Return what `Codec.encode` would, in a third of its time; a test holds the two together."""
    contact, network = submission.contact, text(submission.client_network)
    return b"".join(
        (
            codec.prefix(SUBMISSIONS),
            FIRST_OF_THE_TOPIC,
            ID_LENGTH,
            str(submission.id).encode(),
            network,
            # An IPv4 address is its own network.
            network if submission.ip_address == submission.client_network else text(submission.ip_address),
            optional_text(submission.user_agent),
            optional_text(submission.form_id),
            optional_text(submission.source),
            text(contact.name),
            text(contact.email),
            text(contact.message),
            texts(contact.extra),
            time(submission.taken_at),
            _judged_by(
                submission.limit, submission.window_s, submission.exempt, submission.edge_verdict, submission.spam_sign
            ),
        )
    )


# The same for nearly all of them.
@lru_cache(maxsize=64)
def _judged_by(limit: int, window_s: int, exempt: bool, edge_verdict: str | None, spam_sign: str | None) -> bytes:
    return b"".join(
        (
            number(limit),
            number(window_s),
            b"\x01" if exempt else b"\x00",
            optional_text(edge_verdict),
            optional_text(spam_sign),
        )
    )
