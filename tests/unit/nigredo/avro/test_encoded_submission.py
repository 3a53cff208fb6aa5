"""Fast encoder of submissions: its bytes equal the codec's, for every possible submission."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from nigredo.avro.codec import Codec
from nigredo.avro.encoded_submission import encode_submission
from schemas.events import Contact, Submission
from schemas.topics import SUBMISSIONS, load_schema

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40) | st.integers(1000, 1050).map("é".__mul__)
submissions = st.builds(
    Submission,
    id=st.uuids(),
    client_network=texts,
    ip_address=texts,
    user_agent=st.none() | texts,
    form_id=st.none() | texts,
    source=st.none() | texts,
    contact=st.builds(Contact, texts, texts, texts, st.dictionaries(texts, texts, max_size=4)),
    taken_at=st.integers(0, 2**42).map(lambda ms: datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=ms)),
    limit=st.integers(1, 1_000_000),
    window_s=st.integers(1, 86_400),
    exempt=st.booleans(),
    edge_verdict=st.none() | texts,
    spam_sign=st.none() | texts,
)


class OneSchema:
    """A registry with the one schema of this test."""

    def id_of(self, *_: object) -> int:
        return 7

    def schema_of(self, _: int) -> Any:
        return load_schema("submissions")


@given(submissions)
def test_a_submission_is_encoded_as_its_schema_says(submission: Submission) -> None:
    codec = Codec(OneSchema())
    codec.prepare([SUBMISSIONS])

    value = encode_submission(codec, submission)

    assert value == codec.encode(SUBMISSIONS, submission)
    assert codec.decode(SUBMISSIONS, value) == submission
