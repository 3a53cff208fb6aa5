"""Fast Avro encoder of submissions, the records of `nigredo.submissions`.

Every form is encoded while its client waits for the response.
"""

from __future__ import annotations

from functools import lru_cache

from nigredo.avro.codec import Codec
from nigredo.avro.encoders import number, optional_text, text, texts, time
from schemas.events import Submission
from schemas.topics import SUBMISSIONS

FIRST_OF_THE_TOPIC = b"\x00"
"""Index of the submission in the union of the topic's event types."""
ID_LENGTH = b"\x48"
"""Encoded length of an id: 36 characters."""


def encode_submission(codec: Codec, submission: Submission) -> bytes:
    """Return the same bytes as `Codec.encode` in a third of its time; a test compares the two."""
    contact, network = submission.contact, text(submission.client_network)
    return b"".join(
        (
            codec.prefix(SUBMISSIONS),
            FIRST_OF_THE_TOPIC,
            ID_LENGTH,
            str(submission.id).encode(),
            network,
            # The network of an IPv4 address is the address itself.
            network if submission.ip_address == submission.client_network else text(submission.ip_address),
            optional_text(submission.user_agent),
            optional_text(submission.form_id),
            optional_text(submission.source),
            text(contact.name),
            text(contact.email),
            text(contact.message),
            texts(contact.extra),
            time(submission.taken_at),
            _limit_and_verdict(
                submission.limit, submission.window_s, submission.exempt, submission.edge_verdict, submission.spam_sign
            ),
        )
    )


# Cached, because nearly all submissions share these values.
@lru_cache(maxsize=64)
def _limit_and_verdict(
    limit: int, window_s: int, exempt: bool, edge_verdict: str | None, spam_sign: str | None
) -> bytes:
    return b"".join(
        (
            number(limit),
            number(window_s),
            b"\x01" if exempt else b"\x00",
            optional_text(edge_verdict),
            optional_text(spam_sign),
        )
    )
